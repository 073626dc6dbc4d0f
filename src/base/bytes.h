// Views of raw bytes, and the loads and stores that wire formats need.
//
// Nothing here owns memory or can fail at run time except ByteReader, which latches failure: read everything,
// then ask ok() once. That keeps parsers linear and makes "short input" impossible to forget.
#pragma once

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace porthole {

using Bytes = std::span<const std::uint8_t>;
using MutBytes = std::span<std::uint8_t>;
using ByteVector = std::vector<std::uint8_t>;

inline Bytes as_bytes(std::string_view text) {
  return {reinterpret_cast<const std::uint8_t*>(text.data()), text.size()};
}
inline std::string_view as_text(Bytes bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline ByteVector to_vector(Bytes bytes) { return {bytes.begin(), bytes.end()}; }
inline bool equal(Bytes a, Bytes b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size()) == 0);
}
inline void append(ByteVector& out, Bytes more) { out.insert(out.end(), more.begin(), more.end()); }

template <typename T>
constexpr T byteswap_int(T v) {
  if constexpr (sizeof(T) == 1) return v;
  else if constexpr (sizeof(T) == 2) return static_cast<T>(__builtin_bswap16(v));
  else if constexpr (sizeof(T) == 4) return static_cast<T>(__builtin_bswap32(v));
  else return static_cast<T>(__builtin_bswap64(v));
}

// Unaligned loads and stores. The caller guarantees sizeof(T) bytes at `p`.
template <typename T>
T load_le(const std::uint8_t* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  if constexpr (std::endian::native == std::endian::big) v = byteswap_int(v);
  return v;
}
template <typename T>
T load_be(const std::uint8_t* p) {
  T v;
  std::memcpy(&v, p, sizeof v);
  if constexpr (std::endian::native == std::endian::little) v = byteswap_int(v);
  return v;
}
template <typename T>
void store_le(std::uint8_t* p, T v) {
  if constexpr (std::endian::native == std::endian::big) v = byteswap_int(v);
  std::memcpy(p, &v, sizeof v);
}
template <typename T>
void store_be(std::uint8_t* p, T v) {
  if constexpr (std::endian::native == std::endian::little) v = byteswap_int(v);
  std::memcpy(p, &v, sizeof v);
}

// Lower-case hexadecimal.
std::string to_hex(Bytes bytes);
// Both letter cases accepted; nullopt for odd length or a foreign character.
std::optional<ByteVector> from_hex(std::string_view text);
// Exactly out.size() bytes or false (out is then unspecified).
bool from_hex_exact(std::string_view text, MutBytes out);

// Standard base64 with padding (RFC 4648 section 4).
std::string to_base64(Bytes bytes);
// Standard alphabet, padding required; nullopt for anything else.
std::optional<ByteVector> from_base64(std::string_view text);

// Sequential big/little-endian reader. After the first short read every further read yields zero / empty and
// ok() is false.
class ByteReader {
 public:
  explicit ByteReader(Bytes bytes) : rest_(bytes) {}

  bool ok() const { return ok_; }
  std::size_t remaining() const { return rest_.size(); }
  Bytes rest() const { return rest_; }

  std::uint8_t u8() { return read<std::uint8_t, true>(); }
  std::uint16_t be16() { return read<std::uint16_t, true>(); }
  std::uint32_t be32() { return read<std::uint32_t, true>(); }
  std::uint64_t be64() { return read<std::uint64_t, true>(); }
  std::uint16_t le16() { return read<std::uint16_t, false>(); }
  std::uint32_t le32() { return read<std::uint32_t, false>(); }
  std::uint64_t le64() { return read<std::uint64_t, false>(); }

  Bytes take(std::size_t n) {
    if (n > rest_.size()) {
      ok_ = false;
      rest_ = {};
      return {};
    }
    Bytes out = rest_.first(n);
    rest_ = rest_.subspan(n);
    return out;
  }
  // Copies N bytes; zeros after a short read.
  template <std::size_t N>
  std::array<std::uint8_t, N> array() {
    std::array<std::uint8_t, N> out{};
    Bytes b = take(N);
    if (b.size() == N) std::memcpy(out.data(), b.data(), N);
    return out;
  }

 private:
  template <typename T, bool kBig>
  T read() {
    Bytes b = take(sizeof(T));
    if (b.size() != sizeof(T)) return 0;
    return kBig ? load_be<T>(b.data()) : load_le<T>(b.data());
  }

  Bytes rest_;
  bool ok_ = true;
};

// Appends to a vector; the counterpart of ByteReader for control-plane messages (not for the data path).
class ByteWriter {
 public:
  explicit ByteWriter(ByteVector& out) : out_(out) {}
  void u8(std::uint8_t v) { out_.push_back(v); }
  void be16(std::uint16_t v) { put(v, true); }
  void be32(std::uint32_t v) { put(v, true); }
  void be64(std::uint64_t v) { put(v, true); }
  void le32(std::uint32_t v) { put(v, false); }
  void le64(std::uint64_t v) { put(v, false); }
  void bytes(Bytes b) { append(out_, b); }
  void zeros(std::size_t n) { out_.resize(out_.size() + n); }

 private:
  template <typename T>
  void put(T v, bool big) {
    std::uint8_t tmp[sizeof(T)];
    big ? store_be(tmp, v) : store_le(tmp, v);
    append(out_, tmp);
  }
  ByteVector& out_;
};

}  // namespace porthole
