#include "netstack/byte_queue.h"

#include <algorithm>

#include "base/assert.h"
#include "netstack/limits.h"

namespace porthole::netstack {

void ByteQueue::start_at(std::uint64_t offset) {
  PORTHOLE_ASSERT(used_ == 0);
  begin_ = offset;
  end_chunk_ = offset / kChunkSize;
}

void ByteQueue::reserve_map(std::uint64_t last_chunk) {
  std::uint64_t first = begin_ / kChunkSize;
  std::uint64_t need = last_chunk - first + 1;
  if (need <= map_.size()) return;
  std::size_t size = map_.empty() ? 2 : map_.size();
  while (size < need) size *= 2;
  std::vector<std::uint8_t*> bigger(size, nullptr);
  if (!map_.empty()) {
    for (std::uint64_t n = first; n < end_chunk_; ++n) bigger[n & (size - 1)] = slot(n);
  }
  map_.swap(bigger);
}

std::size_t ByteQueue::write(std::uint64_t offset, Bytes data, bool reserve) {
  if (data.empty()) return 0;
  PORTHOLE_ASSERT(offset >= begin_);
  reserve_map((offset + data.size() - 1) / kChunkSize);
  std::size_t done = 0;
  while (done < data.size()) {
    std::uint64_t number = offset / kChunkSize;
    std::size_t within = static_cast<std::size_t>(offset % kChunkSize);
    std::uint8_t*& memory = slot(number);
    if (memory == nullptr) {
      memory = pool_.take(reserve);
      if (memory == nullptr) break;
      ++used_;
      end_chunk_ = std::max(end_chunk_, number + 1);
    }
    std::size_t n = std::min(data.size() - done, kChunkSize - within);
    std::memcpy(memory + within, data.data() + done, n);
    done += n;
    offset += n;
  }
  return done;
}

wire::PartialSum ByteQueue::copy_and_sum(std::uint8_t* to, std::uint64_t offset, std::size_t size) const {
  std::size_t within = static_cast<std::size_t>(offset % kChunkSize);
  const std::uint8_t* memory = chunk(offset / kChunkSize);
  if (within + size <= kChunkSize) return wire::copy_and_sum(to, memory + within, size);
  wire::PartialSum sum = 0;
  std::size_t done = 0;
  while (done < size) {
    within = static_cast<std::size_t>(offset % kChunkSize);
    std::size_t n = std::min(size - done, kChunkSize - within);
    sum += wire::sum_at(wire::copy_and_sum(to + done, chunk(offset / kChunkSize) + within, n), (done & 1) != 0);
    done += n;
    offset += n;
  }
  return sum;
}

void ByteQueue::read(std::uint64_t offset, MutBytes out) const {
  std::size_t done = 0;
  while (done < out.size()) {
    std::size_t within = static_cast<std::size_t>(offset % kChunkSize);
    std::size_t n = std::min(out.size() - done, kChunkSize - within);
    std::memcpy(out.data() + done, chunk(offset / kChunkSize) + within, n);
    done += n;
    offset += n;
  }
}

std::size_t ByteQueue::spans(std::uint64_t end, std::span<Bytes> out) const {
  std::size_t count = 0;
  for (std::uint64_t at = begin_; at < end && count < out.size();) {
    std::size_t within = static_cast<std::size_t>(at % kChunkSize);
    std::size_t n = static_cast<std::size_t>(std::min<std::uint64_t>(end - at, kChunkSize - within));
    out[count++] = {chunk(at / kChunkSize) + within, n};
    at += n;
  }
  return count;
}

void ByteQueue::release_to(std::uint64_t offset, std::uint64_t end) {
  if (used_ > 0) {
    // A chunk that is read to the end of what was written goes back too: idle connections hold none.
    std::uint64_t keep = offset >= end ? end_chunk_ : offset / kChunkSize;
    for (std::uint64_t n = begin_ / kChunkSize; n < keep && n < end_chunk_; ++n) {
      std::uint8_t*& memory = slot(n);
      if (memory == nullptr) continue;
      pool_.give(memory);
      memory = nullptr;
      --used_;
    }
  }
  begin_ = offset;
  end_chunk_ = std::max(end_chunk_, offset / kChunkSize);
  if (used_ == 0) {
    end_chunk_ = offset / kChunkSize;
    if (map_.size() > 64) std::vector<std::uint8_t*>().swap(map_);
  }
}

void ByteQueue::drop_from(std::uint64_t offset) {
  std::uint64_t first = (offset + kChunkSize - 1) / kChunkSize;
  if (offset <= begin_) first = begin_ / kChunkSize;
  for (std::uint64_t n = first; n < end_chunk_; ++n) {
    std::uint8_t*& memory = slot(n);
    if (memory == nullptr) continue;
    pool_.give(memory);
    memory = nullptr;
    --used_;
  }
  end_chunk_ = std::min(end_chunk_, std::max(first, begin_ / kChunkSize));
}

void ByteQueue::clear() {
  drop_from(begin_);
  std::vector<std::uint8_t*>().swap(map_);
}

}  // namespace porthole::netstack
