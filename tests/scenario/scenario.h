// What scenarios share. Each runs with one fixed seed; chance is the business of random_worlds_keep_their_promises.cpp.
#pragma once

#include <gtest/gtest.h>

#include "sim/tailnet.h"

namespace porthole::scenario {

using namespace porthole::sim;

constexpr std::uint64_t kSeed = 7;

inline LinkConfig link_of(Duration delay) {
  LinkConfig link;
  link.delay = delay;
  return link;
}
inline NatConfig easy_nat() { return {}; }
inline NatConfig hard_nat() {
  NatConfig nat;
  nat.mapping = NatMapping::kAddressAndPort;
  nat.keeps_port = false;
  return nat;
}

// A failing line of a scenario says what happened before it.
#define EXPECT_IN(tailnet, condition) EXPECT_TRUE(condition) << (tailnet).report()
#define ASSERT_IN(tailnet, condition) ASSERT_TRUE(condition) << (tailnet).report()

}  // namespace porthole::scenario
