// Where all socket data lives: equal chunks, counted against the stack's memory limit, reused while busy and given
// back to the allocator when a second did not need them.
#pragma once

#include <cstdint>
#include <vector>

#include "base/time.h"

namespace porthole::netstack {

class ChunkPool {
 public:
  explicit ChunkPool(std::size_t limit_bytes);
  ~ChunkPool();
  ChunkPool(const ChunkPool&) = delete;
  ChunkPool& operator=(const ChunkPool&) = delete;

  // nullptr at the limit. `reserve`: may use the last 5 percent.
  std::uint8_t* take(bool reserve = false);
  void give(std::uint8_t* chunk);

  std::size_t bytes_in_use() const;
  std::size_t bytes_pooled() const;
  std::size_t limit() const { return limit_chunks_ * chunk_size(); }
  // 0..100
  std::size_t pressure_percent() const { return in_use_ * 100 / limit_chunks_; }

  // Frees what stayed unused since the last call; true while free chunks remain.
  bool trim();
  void release_all();

 private:
  static std::size_t chunk_size();
  std::vector<std::uint8_t*> free_;
  std::size_t in_use_ = 0;
  std::size_t limit_chunks_;
  std::size_t low_water_ = 0;  // fewest free chunks since the last trim
};

}  // namespace porthole::netstack
