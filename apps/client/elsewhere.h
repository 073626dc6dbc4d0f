// Runs what blocks on a thread of its own; the event loop goes on meanwhile (C13).
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <exception>
#include <string>
#include <thread>

#include "client/error.h"

namespace porthole::client {

// What `f` throws comes out here. When the event loop is dropped meanwhile, dropping it waits for `f` to return: whoever does
// that must have told `f` to.
template <class F>
boost::asio::awaitable<void> elsewhere(F f) {
  boost::asio::any_io_executor executor = co_await boost::asio::this_coro::executor;
  // And not a handler posted to the loop: one that is being dropped must not be touched from another thread.
  const int fd = ::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (fd < 0) throw ClientError(Failure::kFailed, std::string("cannot wait on another thread: ") + std::strerror(errno));
  boost::asio::posix::stream_descriptor bell(executor, fd);
  std::exception_ptr failure;
  struct Worker {
    std::thread thread;
    ~Worker() {
      if (thread.joinable()) thread.join();
    }
  } worker{std::thread([&f, &failure, fd] {
    try {
      f();
    } catch (...) {
      failure = std::current_exception();
    }
    const std::uint64_t one = 1;
    [[maybe_unused]] ssize_t n = ::write(fd, &one, sizeof one);
  })};
  co_await bell.async_wait(boost::asio::posix::stream_descriptor::wait_read, boost::asio::use_awaitable);
  worker.thread.join();
  if (failure) std::rethrow_exception(failure);
}

}  // namespace porthole::client
