#include "base/record_queue.h"

#include <gtest/gtest.h>

#include <deque>

#include "base/rng.h"

namespace porthole {
namespace {

TEST(RecordQueue, BehavesLikeADequeThatForgetsTheOldest) {
  SeededRng rng(3);
  for (int round = 0; round < 20; ++round) {
    constexpr std::size_t kRecords = 8, kBytes = 1000;
    RecordQueue queue(kRecords, kBytes);
    std::deque<ByteVector> model;
    std::size_t model_bytes = 0;
    for (int step = 0; step < 2000; ++step) {
      if (rng.below(5) < 3) {
        ByteVector record(rng.below(rng.below(4) == 0 ? kBytes + 1 : 60));
        rng.fill(record);
        std::size_t expected_drops = 0;
        while (model.size() == kRecords || model_bytes + record.size() > kBytes) {
          model_bytes -= model.front().size();
          model.pop_front();
          ++expected_drops;
        }
        model.push_back(record);
        model_bytes += record.size();
        std::size_t dropped = 99;
        MutBytes room = queue.push(record.size(), dropped);
        ASSERT_EQ(room.size(), record.size());
        if (!record.empty()) std::memcpy(room.data(), record.data(), record.size());
        ASSERT_EQ(dropped, expected_drops);
      } else if (!model.empty()) {
        ASSERT_TRUE(equal(queue.front(), model.front()));
        queue.pop();
        model_bytes -= model.front().size();
        model.pop_front();
      }
      ASSERT_EQ(queue.count(), model.size());
      ASSERT_EQ(queue.bytes(), model_bytes);
      if (rng.below(50) == 0) queue.release();
    }
  }
}

}  // namespace
}  // namespace porthole
