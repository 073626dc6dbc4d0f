#include "wg/peer.h"

#include <algorithm>

namespace porthole::wg {

void TimerHeap::add(Peer& peer) {
  heap_.push_back(&peer);
  peer.heap_position = heap_.size() - 1;
  up(peer.heap_position);
}

void TimerHeap::remove(Peer& peer) {
  const std::size_t i = peer.heap_position;
  Peer* last = heap_.back();
  heap_.pop_back();
  if (last == &peer) return;
  place(i, last);
  up(i);
  down(last->heap_position);
}

void TimerHeap::lower(Peer& peer, Instant when) {
  if (when >= peer.heap_key) return;
  peer.heap_key = when;
  up(peer.heap_position);
}

void TimerHeap::refresh(Peer& peer) {
  peer.heap_key = *std::min_element(peer.timers.begin(), peer.timers.end());
  up(peer.heap_position);
  down(peer.heap_position);
}

void TimerHeap::up(std::size_t i) {
  Peer* p = heap_[i];
  while (i > 0) {
    const std::size_t parent = (i - 1) / 2;
    if (heap_[parent]->heap_key <= p->heap_key) break;
    place(i, heap_[parent]);
    i = parent;
  }
  place(i, p);
}

void TimerHeap::down(std::size_t i) {
  Peer* p = heap_[i];
  for (;;) {
    std::size_t child = 2 * i + 1;
    if (child >= heap_.size()) break;
    if (child + 1 < heap_.size() && heap_[child + 1]->heap_key < heap_[child]->heap_key) ++child;
    if (p->heap_key <= heap_[child]->heap_key) break;
    place(i, heap_[child]);
    i = child;
  }
  place(i, p);
}

}  // namespace porthole::wg
