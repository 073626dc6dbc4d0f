#include "runtime/resolver.h"

#include <netdb.h>

#include <atomic>
#include <mutex>
#include <system_error>
#include <thread>

#include "runtime/sockaddr.h"

namespace porthole::runtime {
namespace {
constexpr int kLookupsMax = 16;

Result<std::vector<IpAddress>> look_up(const std::string& host) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* list = nullptr;
  int rc = ::getaddrinfo(host.c_str(), nullptr, &hints, &list);
  if (rc != 0)
    return Error{rc == EAI_NONAME ? ErrorCode::kNotFound : ErrorCode::kUnavailable,
                 "cannot find the address of " + host + ": " + ::gai_strerror(rc)};
  std::vector<IpAddress> out;
  for (addrinfo* a = list; a; a = a->ai_next) {
    sockaddr_storage s{};
    std::memcpy(&s, a->ai_addr, a->ai_addrlen);
    IpAddress ip = from_sockaddr(s).address;
    if (ip.is_valid()) out.push_back(ip);
  }
  ::freeaddrinfo(list);
  if (out.empty()) return Error{ErrorCode::kNotFound, host + " has no address"};
  return out;
}
}  // namespace

// Shared with the look-up threads, which may outlive the resolver; `loop` is cleared under the lock first.
struct Resolver::Mailbox {
  std::mutex mutex;
  EventLoop* loop;
  std::atomic<int> running{0};
};

Resolver::Resolver(EventLoop& loop) : mailbox_(std::make_shared<Mailbox>()) { mailbox_->loop = &loop; }

Resolver::~Resolver() {
  std::lock_guard lock(mailbox_->mutex);
  mailbox_->loop = nullptr;
}

void Resolver::resolve(const std::string& host, Done done) {
  if (auto literal = IpAddress::parse(host)) return done(std::vector<IpAddress>{*literal});
  if (host == "localhost") return done(std::vector<IpAddress>{IpAddress::v4(127, 0, 0, 1), *IpAddress::parse("::1")});
  if (mailbox_->running >= kLookupsMax)
    return done(Error{ErrorCode::kLimit, "too many name look-ups at once; " + host + " was not looked up"});
  ++mailbox_->running;
  try {
    std::thread([box = mailbox_, host, done = std::move(done)]() mutable {
      auto result = look_up(host);
      std::lock_guard lock(box->mutex);
      --box->running;
      if (!box->loop) return;
      box->loop->post_always([box, done = std::move(done), result = std::move(result)]() mutable {
        // On the loop's thread; the resolver may be gone by now.
        bool alive;
        {
          std::lock_guard inner(box->mutex);
          alive = box->loop != nullptr;
        }
        if (alive) done(std::move(result));
      });
    }).detach();
  } catch (const std::system_error&) {
    --mailbox_->running;
    done(Error{ErrorCode::kLimit, "no thread left to look up " + host});
  }
}

}  // namespace porthole::runtime
