// The per-datagram calls must not allocate in the steady state. The counter replaces the global allocator of this test
// program; it only counts, and only while asked to.
#include <gtest/gtest.h>

#include <cstdlib>
#include <new>

#include "paths/world_for_test.h"

namespace {
bool counting = false;
std::size_t allocations = 0;

void* counted(std::size_t size) {
  if (counting) ++allocations;
  void* p = std::malloc(size == 0 ? 1 : size);
  if (p == nullptr) std::abort();
  return p;
}
}  // namespace

void* operator new(std::size_t size) { return counted(size); }
void* operator new[](std::size_t size) { return counted(size); }
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return counted(size); }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept { return counted(size); }
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }

namespace porthole::paths {
namespace {

using namespace world;

TEST(HotPath, RouteAndReceiveDoNotAllocate) {
  World w;
  Host& a = w.add_host("a", {"198.51.100.5:41641"});
  Host& b = w.add_host("b", {"203.0.113.5:41641"});
  w.add_region(1, "192.0.2.10:3478");
  w.start_all();
  w.run(1s);
  w.share_map();
  w.traffic(a, b, 5s);
  const PathId id = a.paths->find(b.node);
  ASSERT_TRUE(a.paths->status(w.now, b.node)->trusted);
  std::uint8_t data[64] = {4};
  const Endpoint source = ep("203.0.113.5:41641");
  bool direct = true;
  allocations = 0;
  counting = true;
  for (int i = 0; i < 1000; ++i) {
    const Route r = a.paths->route(w.now, id);
    direct = direct && r.udp && !r.relay_region;
    direct = direct && !a.paths->handle_udp(w.now, {source, data});
    direct = direct && a.paths->peer_at(source) == b.node;
    a.paths->note_authenticated(w.now, b.node, source);
    (void)a.paths->next_timeout();
  }
  counting = false;
  EXPECT_TRUE(direct);
  EXPECT_EQ(allocations, 0u);
}

TEST(HotPath, RelayedRouteDoesNotAllocateBetweenRounds) {
  World w;
  Host& a = w.add_host("a", {"198.51.100.5:41641"});
  Host& b = w.add_host("b", {"203.0.113.5:41641"});
  w.add_region(1, "192.0.2.10:3478");
  w.start_all();
  w.run(1s);
  w.share_map();
  b.udp_blocked = true;
  a.send_data(b);
  w.run(500ms);
  const PathId id = a.paths->find(b.node);
  allocations = 0;
  counting = true;
  for (int i = 0; i < 1000; ++i) (void)a.paths->route(w.now, id);
  counting = false;
  EXPECT_EQ(allocations, 0u);
}

}  // namespace
}  // namespace porthole::paths
