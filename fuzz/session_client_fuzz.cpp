// links: session_proto app_support
// sources: client/session_machine.cpp session/names.cpp
// The client's side of a media session under arbitrary answers. The input is a list of steps: a byte says which request is
// made, whose answer is taken or given up, or that a message comes (a length byte pair and its bytes). What is handed out must be
// what was asked for, within its bounds.
#include <session.pb.h>

#include <cstdint>
#include <cstdlib>
#include <map>

#include "client/limits.h"
#include "client/session_machine.h"
#include "session/limits.h"

namespace {

using namespace porthole::client;
namespace pb = porthole::session::pb;

void require(bool holds) {
  if (!holds) std::abort();
}

void printable(const std::string& text) {
  require(text.size() <= porthole::session::kTextBytesMax);
  for (char c : text) require(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f);
}

enum class Kind { kLogin, kPage, kPoster, kPing, kRange };
struct Request {
  Kind kind;
  std::uint64_t offset = 0, length = 0, taken = 0;
  bool opened = false;
};

class Host {
 public:
  void ask(std::uint8_t how) {
    try {
      Request r{static_cast<Kind>(how % 5)};
      std::uint64_t id = 0;
      switch (r.kind) {
        case Kind::kLogin: id = machine.ask_login({"p", "d", "n", true, false}); break;
        case Kind::kPage: id = machine.ask_page(listing_); break;
        case Kind::kPoster: id = machine.ask_poster("a"); break;
        case Kind::kPing: id = machine.ask_ping(); break;
        case Kind::kRange:
          r.offset = how / 5;
          r.length = how % 2 ? how : 0;
          id = machine.ask_range("a", r.offset, r.length);
          credit_[id] = kWindowBytes;
      }
      requests_[id] = r;
    } catch (const ClientError&) {
      require(machine.ended());
    }
    drain();
  }
  void take(std::uint8_t which) {
    if (requests_.empty()) return;
    auto it = requests_.lower_bound(which % (requests_.rbegin()->first + 1));
    const std::uint64_t id = it->first;
    Request& r = it->second;
    if (!machine.has_answer(id)) return;
    try {
      switch (r.kind) {
        case Kind::kLogin: {
          const LoginAnswer a = machine.login(id);
          for (const std::string& s : {a.server_name, a.server_id, a.remote_problem, a.remote_hostname, a.remote_ip, a.coordination_url, a.tailnet_preauth_key})
            printable(s);
          break;
        }
        case Kind::kPage:
          if (machine.page(id, listing_)) listing_ = {};
          require(listing_.items.size() <= kListItemsMax);
          for (const Item& i : listing_.items) printable(i.title);
          break;
        case Kind::kPoster: machine.poster(id); break;
        case Kind::kPing: machine.pong(id); break;
        case Kind::kRange:
          if (!r.opened) {
            const OpenedRange o = machine.opened(id);
            require(o.offset == r.offset && o.length <= o.size_bytes - o.offset && (r.length == 0 || o.length == r.length));
            printable(o.content_type);
            r.length = o.length;
            r.opened = true;
            break;
          }
          const std::string bytes = machine.data(id);
          r.taken += bytes.size();
          require(r.taken <= r.length && (!bytes.empty() || r.taken == r.length));
          taken_[id] = r.taken;
      }
      if (r.kind != Kind::kRange) give_up(id);
    } catch (const ClientError& e) {
      require(e.what()[0] != '\0');
      give_up(id);
    }
    drain();
  }
  void give_up(std::uint64_t id) {
    machine.forget(id);
    requests_.erase(id);
    drain();
  }
  void give_up_first() {
    if (!requests_.empty()) give_up(requests_.begin()->first);
  }
  // Nobody grants more than a window beyond what was taken.
  void drain() {
    while (auto message = machine.produce()) {
      pb::Envelope e;
      require(message->size() <= porthole::session::kRequestBytesMax && e.ParseFromString(*message));
      if (e.body_case() != pb::Envelope::kCredit) continue;
      credit_[e.id()] += e.credit().bytes();
      require(credit_[e.id()] - taken_[e.id()] <= kWindowBytes);
    }
  }
  SessionMachine machine{"home"};

 private:
  std::map<std::uint64_t, Request> requests_;
  std::map<std::uint64_t, std::uint64_t> credit_, taken_;
  Listing listing_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Host host;
  for (std::size_t at = 0; at + 2 <= size;) {
    const std::uint8_t step = data[at], value = data[at + 1];
    at += 2;
    if (step % 4 == 0) host.ask(value);
    if (step % 4 == 1) host.take(value);
    if (step % 4 == 2) host.give_up_first();
    if (step % 4 != 3) continue;
    std::size_t length = std::size_t{step / 4u} * 256 + value;
    length = length < size - at ? length : size - at;
    host.machine.handle_message({reinterpret_cast<const char*>(data + at), length});
    at += length;
    if (host.machine.ended()) require(!host.machine.reason().empty());
  }
  host.machine.handle_loss("it was closed at the other end");
  require(host.machine.ended());
  for (int i = 0; i < 64; ++i) host.take(static_cast<std::uint8_t>(i));
  return 0;
}
