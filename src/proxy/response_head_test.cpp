#include "proxy/response_head.h"

#include <gtest/gtest.h>

#include "base/rng.h"

namespace porthole::proxy {
namespace {

// What the client gets for what the server sends, cut into slices.
std::string through(const std::string& server, std::size_t slice) {
  ResponseHead head;
  std::string out;
  std::size_t at = 0;
  auto drain = [&] {
    while (!head.output().empty()) {
      Bytes part = head.output().first(std::min<std::size_t>(head.output().size(), 7));
      out.append(as_text(part));
      head.sent(part.size());
    }
  };
  while (!head.done() && at < server.size()) {
    std::size_t size = std::min(slice, server.size() - at);
    std::size_t n = head.consume(as_bytes(server).subspan(at, size));
    EXPECT_LE(n, size);
    EXPECT_TRUE(n > 0 || head.done());
    at += n;
    drain();
  }
  head.end();
  drain();
  EXPECT_TRUE(head.done());
  return out + server.substr(at);
}

TEST(ResponseHead, SaysThatTheConnectionEnds) {
  struct { std::string server, client; } cases[] = {
      // A server that closes without saying so.
      {"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"},
      {"HTTP/1.1 200 OK\r\nconnection: keep-alive\r\nKeep-Alive: timeout=5\r\nX: y\r\n\r\n", "HTTP/1.1 200 OK\r\nX: y\r\nConnection: close\r\n\r\n"},
      {"HTTP/1.0 404 \r\n\r\nbody", "HTTP/1.1 404 \r\nConnection: close\r\n\r\nbody"},
      {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Made\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 Made\r\nConnection: close\r\n\r\n"},
      // As they are: another protocol, and what is no HTTP.
      {"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n\x81\x01x", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n\x81\x01x"},
      {"SSH-2.0-OpenSSH_9.2\r\n\r\nmore", "SSH-2.0-OpenSSH_9.2\r\n\r\nmore"},
      {"HTTP/1.1 200 OK\nlax: yes\n\nbody", "HTTP/1.1 200 OK\nlax: yes\n\nbody"},
      {"HTTP/1.1 200 OK\r\nCut", "HTTP/1.1 200 OK\r\nCut"},
      {"", ""},
  };
  for (const auto& c : cases)
    for (std::size_t slice : {1u, 5u, 1000u}) EXPECT_EQ(through(c.server, slice), c.client) << slice;
  std::string long_head = "HTTP/1.1 200 OK\r\nX: " + std::string(40000, 'a') + "\r\n\r\nbody";
  EXPECT_EQ(through(long_head, 1000), long_head);
}

TEST(ResponseHead, HostileAnswersLoseNothing) {
  SeededRng rng(3);
  const std::string good = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-A: b\r\n\r\nok";
  for (int round = 0; round < 5000; ++round) {
    std::string in = good;
    for (std::uint64_t k = rng.below(4); k > 0; --k) in[rng.below(in.size())] ^= static_cast<char>(1 << rng.below(8));
    in.resize(rng.below(in.size() + 1));
    EXPECT_EQ(through(in, 1 + rng.below(30)), through(in, 1000));
  }
}

}  // namespace
}  // namespace porthole::proxy
