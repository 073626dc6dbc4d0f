// Host names to addresses without blocking the loop: literals and "localhost" at once, everything else through the
// system's resolver on a short-lived thread.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "base/ip.h"
#include "base/result.h"
#include "runtime/event_loop.h"

namespace porthole::runtime {

class Resolver {
 public:
  explicit Resolver(EventLoop& loop);
  ~Resolver();  // answers that are still under way are dropped

  using Done = std::function<void(Result<std::vector<IpAddress>>)>;
  // `done` runs on the loop's thread; before resolve() returns for literals. At most 16 look-ups run at once; more fail
  // with kLimit.
  void resolve(const std::string& host, Done done);

 private:
  struct Mailbox;
  std::shared_ptr<Mailbox> mailbox_;
};

}  // namespace porthole::runtime
