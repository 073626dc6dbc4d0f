// A byte stream in chunks of the pool, addressed by 64-bit stream offsets.
//
// Both directions of TCP use it: the send side appends at the end and copies out anywhere for (re)sending; the receive
// side writes each segment where it belongs, so that out-of-order data is copied once and never moved. Chunks before
// begin() are returned as soon as nothing in them is needed. Bytes never written are indeterminate: who knows what is
// there keeps the intervals.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/bytes.h"
#include "netstack/chunk_pool.h"
#include "wire/checksum.h"

namespace porthole::netstack {

class ByteQueue {
 public:
  explicit ByteQueue(ChunkPool& pool) : pool_(pool) {}
  ~ByteQueue() { clear(); }
  ByteQueue(const ByteQueue&) = delete;
  ByteQueue& operator=(const ByteQueue&) = delete;

  // Only while empty of chunks.
  void start_at(std::uint64_t offset);
  std::uint64_t begin() const { return begin_; }
  // Copies data to [offset, offset + size), offset >= begin(). Returns how much before the pool ran dry.
  std::size_t write(std::uint64_t offset, Bytes data, bool reserve = false);
  // [offset, offset + size) was written.
  wire::PartialSum copy_and_sum(std::uint8_t* to, std::uint64_t offset, std::size_t size) const;
  void read(std::uint64_t offset, MutBytes out) const;
  // Spans over [begin(), end).
  std::size_t spans(std::uint64_t end, std::span<Bytes> out) const;
  // Forget everything before `offset`; `end` is where written data ends: equal means empty.
  void release_to(std::uint64_t offset, std::uint64_t end);
  // Forget everything from `offset` on.
  void drop_from(std::uint64_t offset);
  void clear();
  std::size_t chunk_count() const { return used_; }

 private:
  std::uint8_t*& slot(std::uint64_t chunk_number) { return map_[chunk_number & (map_.size() - 1)]; }
  const std::uint8_t* chunk(std::uint64_t chunk_number) const { return map_[chunk_number & (map_.size() - 1)]; }
  void reserve_map(std::uint64_t last_chunk);

  ChunkPool& pool_;
  std::vector<std::uint8_t*> map_;   // by chunk number modulo its power-of-two size; null: not there
  std::uint64_t begin_ = 0;
  std::uint64_t end_chunk_ = 0;      // chunk numbers below this may be there
  std::uint32_t used_ = 0;
};

}  // namespace porthole::netstack
