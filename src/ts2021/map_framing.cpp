#include "ts2021/map_framing.h"

#include <zstd.h>

#include <algorithm>
#include <memory>
#include <string>

#include "ts2021/limits.h"

namespace porthole::ts2021 {
namespace {

constexpr std::size_t kLengthSize = 4;

struct FreeDecoder {
  void operator()(ZSTD_DCtx* d) const { ZSTD_freeDCtx(d); }
};

Error bad_compression(std::string_view why) {
  return {ErrorCode::kProtocol, "a map message could not be decompressed: " + std::string(why)};
}

}  // namespace

ByteVector zstd_compress(Bytes plain) {
  ByteVector out(ZSTD_compressBound(plain.size()));
  // Level 1: maps are long and repetitive, higher levels gain a few per cent for many times the work.
  std::size_t size = ZSTD_compress(out.data(), out.size(), plain.data(), plain.size(), 1);
  PORTHOLE_ASSERT(ZSTD_isError(size) == 0);  // with room of compressBound only memory can fail
  out.resize(size);
  return out;
}

Result<ByteVector> zstd_decompress(Bytes compressed) {
  std::unique_ptr<ZSTD_DCtx, FreeDecoder> decoder(ZSTD_createDCtx());
  PORTHOLE_ASSERT(decoder != nullptr);
  ZSTD_DCtx_setParameter(decoder.get(), ZSTD_d_windowLogMax, kZstdWindowLogMax);

  ByteVector out;
  ZSTD_inBuffer in{compressed.data(), compressed.size(), 0};
  std::size_t hint = 1;  // 0: at the end of a frame
  for (;;) {
    const std::size_t start = out.size();
    // Room for one byte more than the limit tells "exactly full" from "too much".
    const std::size_t room = std::min(kZstdStepSize, kMapMessageSizeMax + 1 - start);
    out.resize(start + room);
    ZSTD_outBuffer piece{out.data() + start, room, 0};
    const std::size_t consumed_before = in.pos;
    hint = ZSTD_decompressStream(decoder.get(), &piece, &in);
    out.resize(start + piece.pos);
    if (ZSTD_isError(hint) != 0) return bad_compression(ZSTD_getErrorName(hint));
    if (out.size() > kMapMessageSizeMax) {
      return Error{ErrorCode::kLimit, "a map message is larger than " + std::to_string(kMapMessageSizeMax) + " bytes"};
    }
    if (hint == 0 && in.pos == in.size) return out;
    const bool idle = piece.pos == 0 && in.pos == consumed_before;
    if (idle || (in.pos == in.size && piece.pos < room)) return bad_compression("it is cut short");
  }
}

ByteVector frame_map_message(std::string_view json, bool zstd) {
  ByteVector out(kLengthSize);
  if (zstd) append(out, zstd_compress(as_bytes(json)));
  else append(out, as_bytes(json));
  store_le<std::uint32_t>(out.data(), static_cast<std::uint32_t>(out.size() - kLengthSize));
  return out;
}

Status MapFrameReader::consume(Bytes bytes) {
  if (start_ == buffer_.size()) {
    buffer_.clear();
    start_ = 0;
  } else if (start_ > buffer_.size() / 2) {
    buffer_.erase(buffer_.begin(), buffer_.begin() + static_cast<std::ptrdiff_t>(start_));
    start_ = 0;
  }
  append(buffer_, bytes);
  if (buffered() >= kLengthSize) {
    const std::uint32_t length = load_le<std::uint32_t>(buffer_.data() + start_);
    const std::size_t limit = zstd_ ? kMapFrameSizeMax : kMapMessageSizeMax;
    if (length > limit) {
      return Error{ErrorCode::kLimit, "the control server announced a map message of " + std::to_string(length) +
                                          " bytes, more than this node accepts"};
    }
  }
  return {};
}

std::optional<Result<ByteVector>> MapFrameReader::next() {
  if (buffered() < kLengthSize) return std::nullopt;
  const std::size_t length = load_le<std::uint32_t>(buffer_.data() + start_);
  // A second length in the same bytes has not been through consume()'s check.
  if (length > kMapFrameSizeMax) return Error{ErrorCode::kLimit, "a map message is larger than this node accepts"};
  if (buffered() - kLengthSize < length) return std::nullopt;
  Bytes message = Bytes(buffer_).subspan(start_ + kLengthSize, length);
  start_ += kLengthSize + length;
  if (!zstd_) return Result<ByteVector>(to_vector(message));
  return zstd_decompress(message);
}

}  // namespace porthole::ts2021
