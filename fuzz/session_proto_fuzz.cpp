// links: session_proto app_support
// sources: serve/session_machine.cpp session/names.cpp
// The server's side of a media session under arbitrary messages: the input is a list of messages (one length byte pair
// each), the first byte decides whether a login succeeds before them. Work orders are done at once; what comes out must
// keep the credit and the bounds.
#include <session.pb.h>

#include <cstdint>
#include <cstdlib>
#include <map>

#include "serve/limits.h"
#include "serve/session_machine.h"
#include "session/limits.h"

namespace {

using namespace porthole::serve;
namespace pb = porthole::session::pb;

void require(bool holds) {
  if (!holds) std::abort();
}

constexpr std::uint64_t kSize = 700'000;

CatalogPtr catalog() {
  static const CatalogPtr made = [] {
    auto c = std::make_shared<Catalog>();
    c->items.resize(2);
    c->items[0].id = "a";
    c->items[0].has_poster = true;
    c->items[1].id = "b";
    return c;
  }();
  return made;
}

class Host {
 public:
  SessionMachine machine{catalog};

  void work() {
    while (auto action = machine.poll_action()) {
      if (auto* login = std::get_if<CheckLogin>(&*action)) {
        LoginOutcome outcome;
        outcome.success = login->password == "p";
        machine.login_done(login->id, outcome);
      } else if (auto* poster = std::get_if<MakePoster>(&*action)) {
        machine.poster_made(poster->id, "image/jpeg", "x", "");
      } else if (auto* open = std::get_if<OpenItem>(&*action)) {
        machine.item_opened(open->id, kSize, "video/mp4", "");
      } else if (auto* read = std::get_if<ReadChunk>(&*action)) {
        require(read->size > 0 && read->offset + read->size <= kSize);
        machine.chunk_read(read->id, std::string(read->size, 'x'), "");
      }
    }
  }
  // Counts what was granted and what was sent.
  void granted(const pb::Envelope& e) {
    if (e.body_case() == pb::Envelope::kRead) credit_[e.id()] += e.read().credit_bytes();
    if (e.body_case() == pb::Envelope::kCredit) credit_[e.id()] += e.credit().bytes();
  }
  void drain() {
    work();
    while (auto message = machine.produce()) {
      pb::Envelope e;
      require(message->size() <= porthole::session::kAnswerBytesMax && e.ParseFromString(*message));
      if (e.body_case() == pb::Envelope::kData) require((sent_[e.id()] += e.data().content().size()) <= credit_[e.id()]);
      work();
    }
  }

 private:
  std::map<std::uint64_t, std::uint64_t> credit_, sent_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  Host host;
  if (data[0] & 1) {
    pb::Envelope e;
    e.set_version(1);
    e.set_id(1);
    e.mutable_login()->set_password("p");
    e.mutable_login()->set_device_id("00000000-0000-4000-8000-000000000000");
    host.machine.handle_message(e.SerializeAsString());
    host.drain();
    require(host.machine.logged_in());
  }
  std::size_t at = 1;
  while (at + 2 <= size) {
    std::size_t length = std::size_t{data[at]} * 256 + data[at + 1];
    at += 2;
    length = length < size - at ? length : size - at;
    std::string message(reinterpret_cast<const char*>(data + at), length);
    at += length;
    pb::Envelope e;
    if (e.ParseFromString(message)) host.granted(e);
    if (!host.machine.wants_input()) host.drain();
    host.machine.handle_message(message);
    if (length % 3 != 0) host.drain();
    require(host.machine.stream_count() <= porthole::session::kStreamsMax);
  }
  host.drain();
  return 0;
}
