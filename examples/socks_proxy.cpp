// A SOCKS5 and HTTP CONNECT door into the tailnet: socks_proxy STATE_DIR CONTROL_URL [KEY]
#include <cstdio>
#include <porthole/porthole.hpp>

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: %s STATE_DIR CONTROL_URL [KEY]\n", argv[0]);
    return 2;
  }
  std::setvbuf(stdout, nullptr, _IOLBF, 0);
  try {
    porthole::NodeOptions options;
    options.state_dir = argv[1];
    options.control_url = argv[2];
    if (argc > 3) options.auth_key = argv[3];
    porthole::Node node(options);
    porthole::Loopback l = node.loopback();
    std::printf("curl --proxy socks5h://%s:%s@%s http://NAME/\n", l.username.c_str(), l.password.c_str(), l.address.c_str());
    for (;;)
      if (auto event = node.next_event()) std::printf("%s\n", event->c_str());
  } catch (const porthole::Exception& e) {
    std::fprintf(stderr, "socks_proxy: %s\n", e.what());
    return 1;
  }
}
