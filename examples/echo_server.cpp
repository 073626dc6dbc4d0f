// Echoes on a tailnet port: echo_server STATE_DIR CONTROL_URL PORT [KEY]
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <porthole/porthole.hpp>
#include <thread>

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s STATE_DIR CONTROL_URL PORT [KEY]\n", argv[0]);
    return 2;
  }
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  try {
    porthole::NodeOptions options;
    options.state_dir = argv[1];
    options.control_url = argv[2];
    options.hostname = "echo";
    if (argc > 4) options.auth_key = argv[4];
    porthole::Node node(options);
    node.wait_running();
    porthole::Listener listener = node.listen(static_cast<std::uint16_t>(std::atoi(argv[3])));
    std::printf("echoing; status: %s\n", node.status_json().c_str());
    for (;;) {
      std::thread([c = listener.accept()] {
        std::printf("connection from %s\n", c.peer().c_str());
        char block[65536];
        for (ssize_t n; (n = ::read(c.fd(), block, sizeof block)) > 0;)
          if (::write(c.fd(), block, static_cast<std::size_t>(n)) != n) break;
      }).detach();
    }
  } catch (const porthole::Exception& e) {
    std::fprintf(stderr, "echo_server: %s\n", e.what());
    return 1;
  }
}
