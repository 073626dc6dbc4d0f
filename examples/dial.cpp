// Dials a service on the tailnet and copies it to the terminal, like nc:
//   dial STATE_DIR CONTROL_URL HOST:PORT [KEY]      (stdin goes out, answers come back)
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstdio>
#include <porthole/porthole.hpp>

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s STATE_DIR CONTROL_URL HOST:PORT [KEY]\n", argv[0]);
    return 2;
  }
  try {
    porthole::NodeOptions options;
    options.state_dir = argv[1];
    options.control_url = argv[2];
    if (argc > 4) options.auth_key = argv[4];
    porthole::Node node(options);
    porthole::Connection c = node.dial(argv[3]);
    char block[65536];
    bool sending = true;
    for (;;) {
      pollfd p[2] = {{c.fd(), POLLIN, 0}, {sending ? STDIN_FILENO : -1, POLLIN, 0}};
      if (::poll(p, 2, -1) < 0) break;
      if (p[0].revents) {
        ssize_t n = ::read(c.fd(), block, sizeof block);
        if (n < 0) {
          std::perror("connection");
          return 1;
        }
        if (n == 0) return 0;
        if (::write(STDOUT_FILENO, block, static_cast<std::size_t>(n)) != n) return 1;
      }
      if (p[1].revents) {
        ssize_t n = ::read(STDIN_FILENO, block, sizeof block);
        if (n <= 0) {
          sending = false;
          ::shutdown(c.fd(), SHUT_WR);
        } else if (::write(c.fd(), block, static_cast<std::size_t>(n)) != n) {
          return 1;
        }
      }
    }
  } catch (const porthole::Exception& e) {
    std::fprintf(stderr, "dial: %s\n", e.what());
    return 1;
  }
  return 0;
}
