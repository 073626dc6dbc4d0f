// Source and sink for the data-plane benchmarks: as little of its own as possible, so that the nodes are what is measured.
//   pump serve ADDR:PORT            answers every connection: 8 bytes big-endian N in, then N bytes out
//   pump pull BYTES ADDR:PORT                                    directly
//   pump pull BYTES HOST:PORT socks5 PROXY_ADDR:PORT USER PASS   through a SOCKS5 proxy
// pull prints one JSON object: connect_ms, first_byte_ms, seconds, bytes.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

namespace {

using SteadyClock = std::chrono::steady_clock;

[[noreturn]] void die(const char* what) {
  std::perror(what);
  std::exit(1);
}

sockaddr_in parse(const std::string& text) {
  std::size_t colon = text.rfind(':');
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(static_cast<std::uint16_t>(std::atoi(text.c_str() + colon + 1)));
  if (::inet_pton(AF_INET, text.substr(0, colon).c_str(), &a.sin_addr) != 1) {
    std::fprintf(stderr, "pump: bad address %s\n", text.c_str());
    std::exit(2);
  }
  return a;
}

// Reno: a model-based default would pace loopback and measure itself.
void tune(int fd) {
  int one = 1;
  ::setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  ::setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
}

void write_all(int fd, const void* data, std::size_t size) {
  const char* p = static_cast<const char*>(data);
  while (size > 0) {
    ssize_t n = ::send(fd, p, size, MSG_NOSIGNAL);
    if (n <= 0) die("send");
    p += n;
    size -= static_cast<std::size_t>(n);
  }
}

void read_all(int fd, void* data, std::size_t size) {
  char* p = static_cast<char*>(data);
  while (size > 0) {
    ssize_t n = ::recv(fd, p, size, 0);
    if (n <= 0) die("recv");
    p += n;
    size -= static_cast<std::size_t>(n);
  }
}

void serve_one(int fd) {
  std::uint8_t head[8];
  std::size_t got = 0;
  while (got < 8) {
    ssize_t n = ::recv(fd, head + got, 8 - got, 0);
    if (n <= 0) {
      ::close(fd);
      return;
    }
    got += static_cast<std::size_t>(n);
  }
  std::uint64_t left = 0;
  for (std::uint8_t b : head) left = left << 8 | b;
  std::vector<char> block(256 * 1024, 'x');
  while (left > 0) {
    std::size_t n = left < block.size() ? static_cast<std::size_t>(left) : block.size();
    ssize_t w = ::send(fd, block.data(), n, MSG_NOSIGNAL);
    if (w <= 0) break;
    left -= static_cast<std::uint64_t>(w);
  }
  ::close(fd);
}

int serve(const std::string& address) {
  int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  int one = 1;
  ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  sockaddr_in a = parse(address);
  if (::bind(fd, reinterpret_cast<sockaddr*>(&a), sizeof a) != 0 || ::listen(fd, 128) != 0) die("listen");
  socklen_t size = sizeof a;
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&a), &size);
  std::printf("{\"port\":%d}\n", ntohs(a.sin_port));
  std::fflush(stdout);
  for (;;) {
    int c = ::accept4(fd, nullptr, nullptr, SOCK_CLOEXEC);
    if (c < 0) continue;
    tune(c);
    std::thread(serve_one, c).detach();
  }
}

int pull(int argc, char** argv) {
  auto start = SteadyClock::now();
  std::uint64_t bytes = std::strtoull(argv[2], nullptr, 10);
  std::string target = argv[3];
  bool socks = argc == 8;
  sockaddr_in a = parse(socks ? argv[5] : target);
  int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  tune(fd);
  if (::connect(fd, reinterpret_cast<sockaddr*>(&a), sizeof a) != 0) die("connect");
  if (socks) {
    std::string user = argv[6], password = argv[7];
    std::size_t colon = target.rfind(':');
    std::string host = target.substr(0, colon);
    std::uint16_t port = htons(static_cast<std::uint16_t>(std::atoi(target.c_str() + colon + 1)));
    // All three messages at once: the proxy is known to want a password.
    std::string hello("\x05\x01\x02", 3);
    hello += '\x01';
    hello += static_cast<char>(user.size());
    hello += user;
    hello += static_cast<char>(password.size());
    hello += password;
    hello += std::string("\x05\x01\x00\x03", 4);
    hello += static_cast<char>(host.size());
    hello += host;
    hello.append(reinterpret_cast<char*>(&port), 2);
    write_all(fd, hello.data(), hello.size());
    std::uint8_t answer[4];
    read_all(fd, answer, 2);
    if (answer[1] != 2) { std::fprintf(stderr, "pump: no common SOCKS5 method\n"); return 1; }
    read_all(fd, answer, 2);
    if (answer[1] != 0) { std::fprintf(stderr, "pump: credential refused\n"); return 1; }
    read_all(fd, answer, 4);
    if (answer[1] != 0) { std::fprintf(stderr, "pump: SOCKS5 reply %d\n", answer[1]); return 1; }
    std::uint8_t rest[18];
    read_all(fd, rest, answer[3] == 4 ? 18 : 6);
  }
  double connect_ms = std::chrono::duration<double, std::milli>(SteadyClock::now() - start).count();
  std::uint8_t head[8];
  for (int i = 0; i < 8; ++i) head[i] = static_cast<std::uint8_t>(bytes >> (56 - 8 * i));
  write_all(fd, head, 8);
  std::vector<char> block(256 * 1024);
  double first_ms = 0;
  std::uint64_t got = 0;
  auto first = SteadyClock::now();
  while (got < bytes) {
    ssize_t n = ::recv(fd, block.data(), block.size(), 0);
    if (n <= 0) { std::fprintf(stderr, "pump: ended after %llu bytes\n", static_cast<unsigned long long>(got)); return 1; }
    if (got == 0) {
      first = SteadyClock::now();
      first_ms = std::chrono::duration<double, std::milli>(first - start).count();
    }
    got += static_cast<std::uint64_t>(n);
  }
  double seconds = std::chrono::duration<double>(SteadyClock::now() - first).count();
  std::printf("{\"connect_ms\":%.2f,\"first_byte_ms\":%.2f,\"seconds\":%.4f,\"bytes\":%llu}\n", connect_ms, first_ms, seconds,
              static_cast<unsigned long long>(got));
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 3 && std::string(argv[1]) == "serve") return serve(argv[2]);
  if ((argc == 4 || argc == 8) && std::string(argv[1]) == "pull") return pull(argc, argv);
  std::fprintf(stderr, "usage: pump serve ADDR:PORT | pump pull BYTES HOST:PORT [socks5 PROXY USER PASS]\n");
  return 2;
}
