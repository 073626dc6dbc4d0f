// A bounded queue of small byte records (datagrams, packets) in pooled chunks.
#pragma once

#include "netstack/byte_queue.h"

namespace porthole::netstack {

class PacketFifo {
 public:
  explicit PacketFifo(ChunkPool& pool) : bytes_(pool) {}

  bool empty() const { return head_ == tail_; }
  std::size_t size_bytes() const { return static_cast<std::size_t>(tail_ - head_); }
  // One record of two parts. False: over `limit` bytes, or no memory.
  bool push(Bytes first, Bytes second, std::size_t limit) {
    std::size_t size = first.size() + second.size();
    if (size_bytes() + size + 4 > limit) return false;
    std::uint8_t length[4];
    store_le(length, static_cast<std::uint32_t>(size));
    std::uint64_t at = tail_;
    for (Bytes part : {Bytes(length), first, second}) {
      if (bytes_.write(at, part) != part.size()) {
        bytes_.release_to(head_, tail_);
        return false;
      }
      at += part.size();
    }
    tail_ = at;
    return true;
  }
  std::size_t front_size() const {
    std::uint8_t length[4];
    bytes_.read(head_, length);
    return load_le<std::uint32_t>(length);
  }
  // Copies from `offset` of the first record.
  void read_front(std::size_t offset, MutBytes out) const { bytes_.read(head_ + 4 + offset, out); }
  void pop() {
    head_ += 4 + front_size();
    bytes_.release_to(head_, tail_);
  }
  void clear() {
    bytes_.clear();
    head_ = tail_ = 0;
    bytes_.start_at(0);
  }

 private:
  ByteQueue bytes_;
  std::uint64_t head_ = 0, tail_ = 0;
};

}  // namespace porthole::netstack
