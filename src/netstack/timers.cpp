#include "netstack/timers.h"

namespace porthole::netstack {

void TimerHeap::set(TimerNode& node, Instant when) {
  node.wanted = when;
  if (node.position == TimerNode::kNotQueued) {
    if (when == Instant::max()) return;
    node.queued = when;
    heap_.push_back(&node);
    node.position = heap_.size() - 1;
    sift_up(node.position);
  } else if (when < node.queued) {
    node.queued = when;
    sift_up(node.position);
  }
}

void TimerHeap::remove(TimerNode& node) {
  node.wanted = Instant::max();
  std::size_t i = node.position;
  if (i == TimerNode::kNotQueued) return;
  node.position = TimerNode::kNotQueued;
  TimerNode* last = heap_.back();
  heap_.pop_back();
  if (last == &node) return;
  place(i, last);
  sift_up(i);
  sift_down(last->position);
}

TimerNode* TimerHeap::pop_due(Instant now) {
  while (!heap_.empty() && heap_.front()->queued <= now) {
    TimerNode* node = heap_.front();
    if (node->wanted == Instant::max()) {
      remove(*node);
    } else if (node->wanted > now) {
      node->queued = node->wanted;
      sift_down(0);
    } else {
      remove(*node);
      return node;
    }
  }
  return nullptr;
}

void TimerHeap::sift_up(std::size_t i) {
  TimerNode* node = heap_[i];
  while (i > 0) {
    std::size_t parent = (i - 1) / 2;
    if (heap_[parent]->queued <= node->queued) break;
    place(i, heap_[parent]);
    i = parent;
  }
  place(i, node);
}

void TimerHeap::sift_down(std::size_t i) {
  TimerNode* node = heap_[i];
  for (;;) {
    std::size_t child = 2 * i + 1;
    if (child >= heap_.size()) break;
    if (child + 1 < heap_.size() && heap_[child + 1]->queued < heap_[child]->queued) ++child;
    if (node->queued <= heap_[child]->queued) break;
    place(i, heap_[child]);
    i = child;
  }
  place(i, node);
}

}  // namespace porthole::netstack
