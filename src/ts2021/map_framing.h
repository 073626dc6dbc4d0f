// Framing of the map stream (section 6.2): u32 little-endian length, then one message, plain or as zstd frames.
// Framing ignores how HTTP/2 cut the bytes; every message stands alone (no shared zstd context).
#pragma once

#include <optional>
#include <string_view>

#include "base/bytes.h"
#include "base/result.h"

namespace porthole::ts2021 {

// Server side: length and message. `zstd` only when the client asked for it.
ByteVector frame_map_message(std::string_view json, bool zstd);

// One or more complete zstd frames; the content size in them is not trusted. Error: malformed, cut short, or beyond
// kMapMessageSizeMax.
Result<ByteVector> zstd_decompress(Bytes compressed);
ByteVector zstd_compress(Bytes plain);

// Client side: reassembles messages out of the stream's bytes.
class MapFrameReader {
 public:
  explicit MapFrameReader(bool zstd) : zstd_(zstd) {}

  // Error: a length beyond the limit. Final.
  Status consume(Bytes bytes);
  // The next complete message, decompressed. nullopt: more bytes are needed. Error: bad compression. Final.
  std::optional<Result<ByteVector>> next();
  std::size_t buffered() const { return buffer_.size() - start_; }

 private:
  bool zstd_;
  ByteVector buffer_;
  std::size_t start_ = 0;
};

}  // namespace porthole::ts2021
