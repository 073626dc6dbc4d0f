#include "wire/checksum.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace porthole::wire {
namespace {

// 32-bit words into a 64-bit accumulator: 2^32 words before it could overflow, far beyond any packet.
PartialSum sum_tail(const std::uint8_t* p, std::size_t size) {
  PartialSum sum = 0;
  for (; size >= 4; p += 4, size -= 4) {
    std::uint32_t word;
    std::memcpy(&word, p, 4);
    sum += word;
  }
  if (size >= 2) {
    std::uint16_t word;
    std::memcpy(&word, p, 2);
    sum += word;
    p += 2;
    size -= 2;
  }
  if (size == 1) {
    std::uint8_t padded[2] = {*p, 0};
    std::uint16_t word;
    std::memcpy(&word, padded, 2);
    sum += word;
  }
  return sum;
}

#if defined(__x86_64__)
template <bool kCopy>
__attribute__((target("avx2"))) PartialSum sum_avx2(std::uint8_t* to, const std::uint8_t* from, std::size_t size) {
  const __m256i zero = _mm256_setzero_si256();
  __m256i low = zero, high = zero;
  std::size_t whole = size & ~std::size_t{31};
  for (std::size_t i = 0; i < whole; i += 32) {
    __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i));
    if constexpr (kCopy) _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i), v);
    low = _mm256_add_epi64(low, _mm256_unpacklo_epi32(v, zero));
    high = _mm256_add_epi64(high, _mm256_unpackhi_epi32(v, zero));
  }
  alignas(32) std::uint64_t lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), _mm256_add_epi64(low, high));
  if constexpr (kCopy) {
    if (size != whole) std::memcpy(to + whole, from + whole, size - whole);
  }
  PartialSum sum = lanes[0] + lanes[1] + lanes[2] + lanes[3];
  return sum + sum_tail(from + whole, size - whole);
}
#endif

}  // namespace

PartialSum sum_bytes(Bytes data) {
#if defined(__x86_64__)
  if (data.size() >= 64 && __builtin_cpu_supports("avx2")) return sum_avx2<false>(nullptr, data.data(), data.size());
#endif
  return sum_tail(data.data(), data.size());
}

PartialSum copy_and_sum(std::uint8_t* to, const std::uint8_t* from, std::size_t size) {
#if defined(__x86_64__)
  if (size >= 64 && __builtin_cpu_supports("avx2")) return sum_avx2<true>(to, from, size);
#endif
  if (size != 0) std::memcpy(to, from, size);
  return sum_tail(to, size);
}

PartialSum pseudo_header_sum(const IpAddress& source, const IpAddress& destination, std::uint8_t protocol,
                             std::size_t length) {
  std::uint8_t rest[8];
  store_be(rest, static_cast<std::uint32_t>(length));
  store_be(rest + 4, static_cast<std::uint32_t>(protocol));
  return sum_tail(source.bytes().data(), source.bytes().size()) +
         sum_tail(destination.bytes().data(), destination.bytes().size()) + sum_tail(rest, sizeof rest);
}

std::uint16_t update_checksum(std::uint16_t checksum, std::uint16_t old_word, std::uint16_t new_word) {
  std::uint32_t sum = static_cast<std::uint16_t>(~checksum);
  sum += static_cast<std::uint16_t>(~old_word);
  sum += new_word;
  sum = (sum & 0xffff) + (sum >> 16);
  sum = (sum & 0xffff) + (sum >> 16);
  return static_cast<std::uint16_t>(~sum);
}

}  // namespace porthole::wire
