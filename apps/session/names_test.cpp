#include "session/names.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include "session/tls.h"
#include "support/support.h"
#include "support/test_files.h"

namespace porthole::session {
namespace {

// C11.
TEST(TailnetHostname, Table) {
  const std::pair<const char*, std::string> kTable[] = {
      {"Curtis’s iPad Pro", "curtis-s-ipad-pro"},
      {"living-room", "living-room"},
      {"  Küche  ", "k-che"},
      {"--a--b--", "a-b"},
      {"A_B.C", "a-b-c"},
      {"TV\n2", "tv-2"},
      {"日本語", "porthole-device"},
      {"", "porthole-device"},
      {"---", "porthole-device"},
      {"\xff\xfe x", "x"},
      {"9", "9"},
  };
  for (const auto& [name, expected] : kTable) EXPECT_EQ(tailnet_hostname(name), expected) << name;
  EXPECT_EQ(tailnet_hostname(std::string(200, 'x')), std::string(63, 'x'));
  EXPECT_EQ(tailnet_hostname(std::string(62, 'x') + "-y"), std::string(62, 'x'));
  EXPECT_EQ(tailnet_hostname("!", "tv"), "tv");
}

TEST(ServerUrl, FormsThatAreTaken) {
  struct {
    const char* url;
    const char* host;
    std::uint16_t port;
  } kTable[] = {{"wss://192.168.1.4:9000", "192.168.1.4", 9000}, {"home.lan", "home.lan", 8443},
                {"https://home.lan/", "home.lan", 8443},         {"[::1]:77", "::1", 77},
                {"wss://[fd00::2]/x?y", "fd00::2", 8443},        {"10.0.0.1:65535", "10.0.0.1", 65535}};
  for (const auto& t : kTable) {
    HostPort at = parse_server_url(t.url, 8443);
    EXPECT_EQ(at.host, t.host) << t.url;
    EXPECT_EQ(at.port, t.port) << t.url;
  }
  for (const char* bad : {"", "ftp://x", "ws://x", "x:0", "x:65536", "x:1a", "::1", "[::1", "[::1]x", "a b:1", "user@host:1", ":1"})
    EXPECT_THROW(parse_server_url(bad, 8443), app::CommandError) << bad;
  EXPECT_THROW(parse_listen_address("127.0.0.1"), app::CommandError);
  EXPECT_EQ(parse_listen_address("127.0.0.1:0").port, 0);
  EXPECT_EQ(join_host_port("::1", 5), "[::1]:5");
}

TEST(CleanText, IsAlwaysPrintableUtf8) {
  EXPECT_EQ(clean_text("a\x01\xff’", 100), "a??’");
  EXPECT_EQ(clean_text("ab’", 4), "ab");
  EXPECT_EQ(clean_text("\xed\xa0\x80", 9), "???");
}

TEST(Tls, IdentityIsMadeOnceKeptPrivateAndNeverReplaced) {
  app::TempDir dir;
  std::string first = fingerprint_of(server_tls(dir / "tls.pem").get());
  EXPECT_EQ(first.size(), 7u + 64u);
  EXPECT_EQ(fingerprint_of(server_tls(dir / "tls.pem").get()), first);
  struct stat s {};
  ASSERT_EQ(::stat((dir / "tls.pem").c_str(), &s), 0);
  EXPECT_EQ(s.st_mode & 0777, 0600u);
  app::write_text(dir / "tls.pem", "damaged");
  EXPECT_THROW(server_tls(dir / "tls.pem"), app::CommandError);
  EXPECT_EQ(app::read_file(dir / "tls.pem"), "damaged");
}

}  // namespace
}  // namespace porthole::session
