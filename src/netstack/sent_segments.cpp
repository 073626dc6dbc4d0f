#include "netstack/sent_segments.h"

#include "base/assert.h"

namespace porthole::netstack {

SentSegments::Id SentSegments::append(const SentSegment& segment) {
  if (size() == records_.size()) grow();
  Id id = tail_++;
  (*this)[id] = segment;
  (*this)[id].older = (*this)[id].newer = kNone;
  (*this)[id].flags &= static_cast<std::uint8_t>(~SentSegment::kInNetwork);
  return id;
}

void SentSegments::grow() {
  std::size_t size = records_.empty() ? 8 : records_.size() * 2;
  std::vector<SentSegment> bigger(size);
  std::uint64_t mask = size - 1;
  for (Id id = head_; id != tail_; ++id) bigger[id & mask] = (*this)[id];
  records_.swap(bigger);
  mask_ = mask;
}

void SentSegments::pop_front() {
  if ((*this)[head_].has(SentSegment::kInNetwork)) unlink(head_);
  ++head_;
  if (head_ == tail_) clear();  // idle connections keep nothing
}

SentSegments::Id SentSegments::find(std::uint64_t sequence) const {
  Id low = head_, high = tail_;
  while (low < high) {
    Id middle = low + (high - low) / 2;
    if ((*this)[middle].end() <= sequence) low = middle + 1;
    else high = middle;
  }
  return low;
}

void SentSegments::link_newest(Id id) {
  SentSegment& s = (*this)[id];
  PORTHOLE_ASSERT(!s.has(SentSegment::kInNetwork));
  s.flags |= SentSegment::kInNetwork;
  s.older = newest_;
  s.newer = kNone;
  if (newest_ != kNone) (*this)[newest_].newer = id;
  else oldest_ = id;
  newest_ = id;
  pipe_ += s.size;
}

void SentSegments::unlink(Id id) {
  SentSegment& s = (*this)[id];
  PORTHOLE_ASSERT(s.has(SentSegment::kInNetwork));
  s.flags &= static_cast<std::uint8_t>(~SentSegment::kInNetwork);
  if (s.older != kNone) (*this)[s.older].newer = s.newer;
  else oldest_ = s.newer;
  if (s.newer != kNone) (*this)[s.newer].older = s.older;
  else newest_ = s.older;
  s.older = s.newer = kNone;
  pipe_ -= s.size;
}

void SentSegments::trim_front(Id id, std::uint32_t bytes) {
  SentSegment& s = (*this)[id];
  PORTHOLE_ASSERT(bytes < s.size);
  s.sequence += bytes;
  s.size -= bytes;
  if (s.has(SentSegment::kInNetwork)) pipe_ -= bytes;
}

void SentSegments::clear() {
  std::vector<SentSegment>().swap(records_);
  mask_ = 0;
  head_ = tail_ = 1;
  oldest_ = newest_ = kNone;
  pipe_ = 0;
}

std::uint64_t SentSegments::recount_pipe() const {
  std::uint64_t sum = 0;
  for (Id id = oldest_; id != kNone; id = (*this)[id].newer) sum += (*this)[id].size;
  return sum;
}

}  // namespace porthole::netstack
