// Connected TCP streams for sessions (C1): straight, or through a SOCKS5 proxy with user name and password
// (RFC 1928, RFC 1929). What comes out is the same either way.
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <chrono>
#include <cstdint>
#include <string>

namespace porthole::client {

// The loopback door into the tailnet (C2).
struct ProxyEndpoint {
  std::string address;  // "127.0.0.1:34567"
  std::string username, password;
};

// ClientError kUnreachable with the reason.
boost::asio::awaitable<boost::asio::ip::tcp::socket> connect_direct(std::string host, std::uint16_t port,
                                                                    std::chrono::milliseconds time_max);
boost::asio::awaitable<boost::asio::ip::tcp::socket> connect_through(ProxyEndpoint proxy, std::string host,
                                                                     std::uint16_t port,
                                                                     std::chrono::milliseconds time_max);

}  // namespace porthole::client
