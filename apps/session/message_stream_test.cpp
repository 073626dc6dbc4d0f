// Both ends over loopback, and the server's end against bytes made by hand.
#include "session/message_stream.h"

#include <gtest/gtest.h>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/error.hpp>
#include <boost/beast/websocket/error.hpp>

#include "session/limits.h"
#include "session/tls.h"
#include "support/test_files.h"

namespace porthole::session {
namespace {

namespace asio = boost::asio;
namespace websocket = boost::beast::websocket;
using asio::awaitable;
using asio::use_awaitable;
using asio::ip::tcp;
using Side = asio::ssl::stream_base;

constexpr std::size_t kMax = 1000;

class MessageStreamTest : public ::testing::Test {
 protected:
  MessageStreamTest() {
    tcp::acceptor acceptor(io, tcp::endpoint(asio::ip::address_v4::loopback(), 0));
    tcp::socket there(io);
    there.connect(acceptor.local_endpoint());
    server = std::make_unique<MessageStream>(acceptor.accept(), server_tls_, kMax);
    client_socket_ = std::make_unique<tcp::socket>(std::move(there));
  }

  std::unique_ptr<MessageStream> client(std::size_t message_max = kMax) {
    return std::make_unique<MessageStream>(std::move(*client_socket_), client_tls_, message_max);
  }
  asio::ssl::stream<tcp::socket> by_hand() { return {std::move(*client_socket_), client_tls_}; }

  // Both until they are done.
  template <class... F>
  void run(F... sides) {
    std::size_t left = sizeof...(sides);
    auto over = [&](std::exception_ptr failure) {
      if (--left == 0) io.stop();  // without waiting for the time limits of streams
      if (failure) std::rethrow_exception(failure);
    };
    (asio::co_spawn(io, sides(), over), ...);
    io.run_for(std::chrono::seconds(20));
    EXPECT_EQ(left, 0u) << "somebody waits for ever";
  }
  awaitable<void> welcome() {
    EXPECT_FALSE(co_await server->secure(Side::server, kHandshakeTimeout));
    EXPECT_FALSE(co_await server->read_upgrade());
    EXPECT_FALSE(co_await server->accept());
  }
  static awaitable<void> knock(MessageStream& client) {
    EXPECT_FALSE(co_await client.secure(Side::client, kHandshakeTimeout));
    unsigned status = 0;
    EXPECT_FALSE(co_await client.connect(status));
    EXPECT_EQ(status, 101u);
  }

  asio::io_context io{1};
  std::unique_ptr<MessageStream> server;

 private:
  app::TempDir folder_;
  asio::ssl::context server_tls_{session::server_tls(folder_ / "tls.pem").release()};
  asio::ssl::context client_tls_{session::client_tls().release()};
  std::unique_ptr<tcp::socket> client_socket_;
};

TEST_F(MessageStreamTest, MessagesArriveWholeAndTheEndIsTold) {
  auto there = client();
  run(
      [&]() -> awaitable<void> {
        co_await welcome();
        for (;;) {
          const auto message = co_await server->read();
          if (message.error) {
            EXPECT_EQ(message.error, websocket::error::closed);
            break;
          }
          EXPECT_FALSE(message.text);
          const std::string answer(message.bytes);
          EXPECT_FALSE(co_await server->write(answer));
        }
      },
      [&]() -> awaitable<void> {
        co_await knock(*there);
        EXPECT_EQ(peer_fingerprint(there->tls()).size(), std::string("sha256:").size() + 64);
        for (std::size_t size : {std::size_t{0}, std::size_t{1}, std::size_t{125}, std::size_t{126}, kMax}) {
          std::string sent(size, '\0');
          for (std::size_t i = 0; i < size; ++i) sent[i] = static_cast<char>(i * 7);
          EXPECT_FALSE(co_await there->write(sent));
          const auto message = co_await there->read();
          EXPECT_FALSE(message.error);
          EXPECT_EQ(message.bytes, sent);
        }
        EXPECT_FALSE(co_await there->close());
      });
}

TEST_F(MessageStreamTest, AMessageBeyondTheBoundEndsIt) {
  auto there = client();
  run(
      [&]() -> awaitable<void> {
        co_await welcome();
        EXPECT_TRUE((co_await server->read()).error);
        server->abort();
      },
      [&]() -> awaitable<void> {
        co_await knock(*there);
        const std::string sent(kMax + 1, 'x');
        (void)co_await there->write(sent);
        EXPECT_TRUE((co_await there->read()).error);
      });
}

TEST_F(MessageStreamTest, AbortEndsWhatIsUnderWay) {
  auto there = client();
  run(
      [&]() -> awaitable<void> {
        co_await welcome();
        EXPECT_TRUE((co_await server->read()).error);
      },
      [&]() -> awaitable<void> {
        co_await knock(*there);
        asio::post(io, [&] { there->abort(); });
        EXPECT_TRUE((co_await there->read()).error);
      });
}

TEST_F(MessageStreamTest, WhoeverSaysNothingIsGivenUp) {
  run([&]() -> awaitable<void> { EXPECT_EQ(co_await server->secure(Side::server, std::chrono::seconds(1)), boost::beast::error::timeout); });
}

TEST_F(MessageStreamTest, AnythingButTheUpgradeIsToldWhatThisIs) {
  auto there = by_hand();
  std::string answer;
  run(
      [&]() -> awaitable<void> {
        EXPECT_FALSE(co_await server->secure(Side::server, kHandshakeTimeout));
        EXPECT_EQ(co_await server->read_upgrade(), websocket::error::upgrade_declined);
        server->abort();
      },
      [&]() -> awaitable<void> {
        co_await there.async_handshake(Side::client, use_awaitable);
        const std::string request = "GET / HTTP/1.1\r\nHost: porthole\r\n\r\n";
        co_await asio::async_write(there, asio::buffer(request), use_awaitable);
        char piece[512];
        while (answer.find("connect to it.\n") == std::string::npos)
          answer.append(piece, co_await there.async_read_some(asio::buffer(piece), use_awaitable));
        there.lowest_layer().close();
      });
  EXPECT_TRUE(answer.starts_with("HTTP/1.1 404 ")) << answer;
}

TEST_F(MessageStreamTest, TextIsMarked) {
  auto there = by_hand();
  run(
      [&]() -> awaitable<void> {
        co_await welcome();
        const auto message = co_await server->read();
        EXPECT_FALSE(message.error);
        EXPECT_TRUE(message.text);
        EXPECT_EQ(message.bytes, "hi");
      },
      [&]() -> awaitable<void> {
        co_await there.async_handshake(Side::client, use_awaitable);
        const std::string request = std::string("GET ") + kSessionPath +
                                    " HTTP/1.1\r\nHost: porthole\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
        co_await asio::async_write(there, asio::buffer(request), use_awaitable);
        char head[1024];
        std::string answer;
        while (!answer.ends_with("\r\n\r\n")) answer.append(head, co_await there.async_read_some(asio::buffer(head), use_awaitable));
        EXPECT_TRUE(answer.starts_with("HTTP/1.1 101 ")) << answer;
        // RFC 6455 section 5.2: final, text, masked with zeros, two bytes.
        const std::string frame("\x81\x82\0\0\0\0hi", 8);
        co_await asio::async_write(there, asio::buffer(frame), use_awaitable);
      });
}

}  // namespace
}  // namespace porthole::session
