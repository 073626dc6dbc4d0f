#include "client/connector.h"

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/connect.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

#include "client/error.h"
#include "session/names.h"

namespace porthole::client {
namespace {

namespace asio = boost::asio;
using asio::awaitable;
using asio::ip::tcp;
using boost::system::error_code;

// Closes what it watches when the time is up; expired() tells that from other errors.
class TimeLimit {
 public:
  TimeLimit(asio::any_io_executor executor, std::chrono::milliseconds time, std::function<void()> cut)
      : timer_(executor, time), expired_(std::make_shared<bool>(false)) {
    timer_.async_wait([expired = expired_, cut = std::move(cut)](error_code canceled) {
      if (canceled) return;
      *expired = true;
      cut();
    });
  }
  ~TimeLimit() { timer_.cancel(); }
  bool expired() const { return *expired_; }

 private:
  asio::steady_timer timer_;
  std::shared_ptr<bool> expired_;
};

// RFC 1928 section 6.
std::string reply_sentence(unsigned char code) {
  switch (code) {
    case 2:
      return "the connection is not allowed";
    case 3:
      return "the network is unreachable";
    case 4:
      return "there is no such machine on the tailnet, or it does not answer";
    case 5:
      return "the connection was refused";
    case 6:
      return "it took too long";
    default:
      return "the proxy gave up (code " + std::to_string(code) + ")";
  }
}

}  // namespace

awaitable<tcp::socket> connect_direct(std::string host, std::uint16_t port, std::chrono::milliseconds time_max) {
  asio::any_io_executor executor = co_await asio::this_coro::executor;
  std::string where = session::join_host_port(host, port);
  // Shared: the cut may come while the resolver's thread still works.
  auto resolver = std::make_shared<tcp::resolver>(executor);
  auto socket = std::make_shared<tcp::socket>(executor);
  TimeLimit limit(executor, time_max, [resolver, socket] {
    error_code ignored;
    resolver->cancel();
    socket->close(ignored);
  });
  error_code error;
  std::string service = std::to_string(port);
  tcp::resolver::results_type addresses =
      co_await resolver->async_resolve(host, service, asio::redirect_error(asio::use_awaitable, error));
  if (limit.expired()) throw ClientError(Failure::kUnreachable, where + " cannot be reached: the name lookup takes too long");
  if (error) throw ClientError(Failure::kUnreachable, "there is no address for \"" + host + "\": " + error.message());
  co_await asio::async_connect(*socket, addresses, asio::redirect_error(asio::use_awaitable, error));
  if (limit.expired()) throw ClientError(Failure::kUnreachable, where + " does not answer");
  if (error) throw ClientError(Failure::kUnreachable, where + " cannot be reached: " + error.message());
  socket->set_option(tcp::no_delay(true), error);
  co_return std::move(*socket);
}

awaitable<tcp::socket> connect_through(ProxyEndpoint proxy, std::string host, std::uint16_t port,
                                       std::chrono::milliseconds time_max) {
  asio::any_io_executor executor = co_await asio::this_coro::executor;
  session::HostPort at = session::parse_listen_address(proxy.address);
  auto socket = std::make_shared<tcp::socket>(co_await connect_direct(at.host, at.port, time_max));
  std::string where = session::join_host_port(host, port);
  TimeLimit limit(executor, time_max, [socket] {
    error_code ignored;
    socket->close(ignored);
  });
  if (host.size() > 255 || proxy.username.size() > 255 || proxy.password.size() > 255)
    throw ClientError(Failure::kFailed, "a name is too long for the proxy");
  try {
    auto write = [&](const std::string& bytes) -> awaitable<void> {
      co_await asio::async_write(*socket, asio::buffer(bytes), asio::use_awaitable);
    };
    auto read = [&](std::size_t size) -> awaitable<std::string> {
      std::string bytes(size, '\0');
      co_await asio::async_read(*socket, asio::buffer(bytes), asio::use_awaitable);
      co_return bytes;
    };
    std::string message("\x05\x01\x02", 3);
    co_await write(message);
    std::string answer = co_await read(2);
    if (answer != std::string("\x05\x02", 2)) throw ClientError(Failure::kFailed, "the proxy does not take its own credential");
    message = std::string("\x01", 1) + static_cast<char>(proxy.username.size()) + proxy.username +
              static_cast<char>(proxy.password.size()) + proxy.password;
    co_await write(message);
    answer = co_await read(2);
    if (answer[1] != 0) throw ClientError(Failure::kFailed, "the proxy does not take its own credential");
    message = std::string("\x05\x01\x00", 3);
    error_code not_an_address;
    asio::ip::address ip = asio::ip::make_address(host, not_an_address);
    if (not_an_address) {
      message += '\x03';
      message += static_cast<char>(host.size());
      message += host;
    } else if (ip.is_v4()) {
      asio::ip::address_v4::bytes_type bytes = ip.to_v4().to_bytes();
      message += '\x01';
      message.append(bytes.begin(), bytes.end());
    } else {
      asio::ip::address_v6::bytes_type bytes = ip.to_v6().to_bytes();
      message += '\x04';
      message.append(bytes.begin(), bytes.end());
    }
    message += static_cast<char>(port >> 8);
    message += static_cast<char>(port & 0xff);
    co_await write(message);
    answer = co_await read(4);
    if (answer[1] != 0)
      throw ClientError(Failure::kUnreachable, where + " cannot be reached over the tailnet: " +
                                                   reply_sentence(static_cast<unsigned char>(answer[1])));
    std::size_t address_size = answer[3] == 1 ? 4 : answer[3] == 4 ? 16 : 0;
    if (answer[3] == 3) {
      answer = co_await read(1);
      address_size = static_cast<unsigned char>(answer[0]);
    }
    answer = co_await read(address_size + 2);
  } catch (const boost::system::system_error& e) {
    std::string why = limit.expired() ? "it took too long" : e.code().message();
    throw ClientError(Failure::kUnreachable, where + " cannot be reached over the tailnet: " + why);
  }
  co_return std::move(*socket);
}

}  // namespace porthole::client
