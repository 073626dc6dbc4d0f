#include "netstack/chunk_pool.h"

#include <algorithm>
#include <cstdlib>

#include "base/assert.h"
#include "netstack/limits.h"

namespace porthole::netstack {

std::size_t ChunkPool::chunk_size() { return kChunkSize; }

ChunkPool::ChunkPool(std::size_t limit_bytes)
    : limit_chunks_(std::max<std::size_t>(limit_bytes / kChunkSize, 32)) {}

ChunkPool::~ChunkPool() {
  release_all();
  PORTHOLE_ASSERT(in_use_ == 0);
}

std::uint8_t* ChunkPool::take(bool reserve) {
  std::size_t limit = reserve ? limit_chunks_ : limit_chunks_ - limit_chunks_ * kMemoryReservePercent / 100;
  if (in_use_ >= limit) return nullptr;
  std::uint8_t* chunk;
  if (!free_.empty()) {
    chunk = free_.back();
    free_.pop_back();
    low_water_ = std::min(low_water_, free_.size());
  } else {
    chunk = static_cast<std::uint8_t*>(std::malloc(kChunkSize));
    if (chunk == nullptr) return nullptr;
  }
  ++in_use_;
  return chunk;
}

void ChunkPool::give(std::uint8_t* chunk) {
  PORTHOLE_ASSERT(in_use_ > 0);
  --in_use_;
  if (free_.size() >= kPooledChunksMax) {
    std::free(chunk);
  } else {
    free_.push_back(chunk);
  }
}

std::size_t ChunkPool::bytes_in_use() const { return in_use_ * kChunkSize; }
std::size_t ChunkPool::bytes_pooled() const { return free_.size() * kChunkSize; }

bool ChunkPool::trim() {
  for (std::size_t n = std::min(low_water_, free_.size()); n > 0; --n) {
    std::free(free_.back());
    free_.pop_back();
  }
  low_water_ = free_.size();
  if (free_.empty()) std::vector<std::uint8_t*>().swap(free_);
  return !free_.empty();
}

void ChunkPool::release_all() {
  low_water_ = free_.size();
  trim();
}

}  // namespace porthole::netstack
