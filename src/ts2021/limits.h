// Bounds of the control protocol's shared machinery, each with its derivation. Spec constants are in spec_constants.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace porthole::ts2021 {

// Decoded map message. A node with full Hostinfo is about 1.5 KiB of JSON, so this holds some 40,000 peers.
constexpr std::size_t kMapMessageSizeMax = 64u << 20;
// A map message on the wire: compressed never exceeds decoded by more than zstd's own headers.
constexpr std::size_t kMapFrameSizeMax = kMapMessageSizeMax + (64u << 10);
// Decoded bytes made per step while decompressing; the buffer grows by what is really there, never by a header's claim.
constexpr std::size_t kZstdStepSize = 128u << 10;
// zstd window: 8 MiB is the format's recommended limit for decoders (RFC 8878 section 3.1.1.1.2).
constexpr int kZstdWindowLogMax = 23;

// Register answers, request bodies: what Headscale and the Go client accept.
constexpr std::size_t kRequestBodySizeMax = 1u << 20;
constexpr std::size_t kRegisterResponseSizeMax = 1u << 20;
// Answer to GET /key: what the Go client reads.
constexpr std::size_t kKeyAnswerSizeMax = 64u << 10;
// JSON nesting of every known message is below 10; 32 leaves room for unknown fields and CapMap values.
constexpr std::size_t kJsonDepthMax = 32;
// List entries of one node or rule (addresses, endpoints, tags, sources): far above real maps, below memory trouble.
constexpr std::size_t kListEntriesMax = 1u << 20;

// Header list of one HTTP/2 request or answer; real ones are below 1 KiB.
constexpr std::size_t kHeaderListSizeMax = 32u << 10;
constexpr std::size_t kHeaderCountMax = 100;
// Streams a client may have open on our server: register, Followup, map, a few lite updates, c2n answers.
constexpr std::uint32_t kServerStreamsMax = 100;
// Memory of all request bodies of one session that are still arriving: four of the largest.
constexpr std::size_t kServerBodiesSizeMax = 4 * kRequestBodySizeMax;
// Client windows (control protocol section 4): a first map of megabytes must not wait for window updates.
constexpr std::int32_t kClientStreamWindow = 4 << 20;
constexpr std::int32_t kClientConnectionWindow = 1 << 30;
// Server windows: a full request body at once, and several bodies per connection.
constexpr std::int32_t kServerStreamWindow = 1 << 20;
constexpr std::int32_t kServerConnectionWindow = 4 << 20;
// Unread answer bytes a server keeps for one stream: one full map of the largest kind plus deltas behind it.
constexpr std::size_t kServerStreamQueueSizeMax = kMapFrameSizeMax + (4u << 20);
// Control frames (SETTINGS and PING acknowledgements, RST_STREAM) waiting to go out before a peer counts as flooding.
constexpr std::size_t kControlFramesMax = 1000;
// Events waiting for poll_event(); one consume() of 16 KiB cannot make more: an HTTP/2 frame is at least 9 bytes.
constexpr std::size_t kEarlyPayloadSizeMax = 1024;  // what tailscale-rs accepts

}  // namespace porthole::ts2021
