// Two stacks over an emulated link: whatever the link does, the bytes arrive and everything is given back.
#include <gtest/gtest.h>

#include "netstack/link_harness.h"

namespace porthole::netstack {
namespace {

using namespace harness;

TEST(TcpTransfer, CleanLink) {
  World::Options o;
  o.forward.rate_bps = o.backward.rate_bps = 100e6;
  o.forward.queue_bytes = 1 << 20;
  World w(o);
  Transfer t(w, 4 << 20);
  ASSERT_TRUE(w.run(60s, [&] { return t.done(); })) << t.received << " " << t.eof << t.closed;
  EXPECT_FALSE(t.corrupt);
  EXPECT_EQ(t.received, 4u << 20);
}

}  // namespace
}  // namespace porthole::netstack
