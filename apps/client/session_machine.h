// The client's side of a media session as a machine without I/O (proto/session.proto): messages in, messages out.
//
//   handle_message()  bytes of one WebSocket message
//   produce()         the next message to send
//
// A request gives its number; has_answer() says when the function named after it may be called. Those throw ClientError
// when the server refused, when its answer does not fit, or when the session has ended first. One thread.
#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "client/error.h"

namespace porthole::session::pb {
class Envelope;
}  // namespace porthole::session::pb

namespace porthole::client {

struct LoginDetails {
  std::string password, device_id, device_name;
  bool want_remote = false;
  bool new_key = false;
};
struct LoginAnswer {
  std::string server_name, server_id, remote_problem;
  std::string remote_hostname, remote_ip, coordination_url, tailnet_preauth_key;
};
struct Item {
  std::string id, title, file_name, video_codec, audio_codec, content_type, unplayable;
  std::uint64_t duration_ms = 0, size_bytes = 0;
  std::uint32_t width = 0, height = 0;
  bool has_poster = false;
};
struct PosterImage {
  std::string content_type, image;
};
// A range of an item, as the server opened it.
struct OpenedRange {
  std::uint64_t size_bytes = 0;  // of the whole item
  std::uint64_t offset = 0, length = 0;
  std::string content_type;
};
// The library, page by page.
struct Listing {
  std::vector<Item> items;
  std::uint32_t total = 1;  // as the server says; one page is asked for in any case
  std::uint64_t revision = 0;
  int starts = 0;  // from the first page
};

class SessionMachine {
 public:
  // `where` names the server in sentences.
  explicit SessionMachine(std::string where);
  ~SessionMachine();

  // The number of the request that it answers; 0: none that is known.
  std::uint64_t handle_message(std::string_view bytes);
  // The connection broke, "it was closed at the other end"; a notice that came before is the better reason.
  void handle_loss(const std::string& why);
  void end(Failure failure, std::string reason);
  bool ended() const { return ended_; }
  const std::string& reason() const { return reason_; }
  // May hold the password.
  std::optional<std::string> produce();

  // ClientError when the session has ended.
  std::uint64_t ask_login(const LoginDetails& details);
  std::uint64_t ask_page(const Listing& listing);
  std::uint64_t ask_poster(const std::string& item_id);
  std::uint64_t ask_ping();
  // Bytes [offset, offset + length); length 0: to the end. Grants kWindowBytes.
  std::uint64_t ask_range(const std::string& item_id, std::uint64_t offset, std::uint64_t length);
  // Nobody waits for it any more. A range that is not at its end is closed at the server.
  void forget(std::uint64_t request);

  // Also when the session has ended, which the answer then says.
  bool has_answer(std::uint64_t request) const;
  LoginAnswer login(std::uint64_t request);
  // Adds the page; true: the listing is whole.
  bool page(std::uint64_t request, Listing& listing);
  PosterImage poster(std::uint64_t request);
  void pong(std::uint64_t request);
  OpenedRange opened(std::uint64_t request);
  // The next bytes of an opened range; empty: it is complete. Grants as much anew as was taken.
  std::string data(std::uint64_t request);

 private:
  // Answers to one request, in order. Bounded by what was granted: credit for data, one answer otherwise.
  struct Pending;

  std::uint64_t send(session::pb::Envelope& e);
  void post(std::uint64_t id, session::pb::Envelope& e);
  session::pb::Envelope take(std::uint64_t request, int expected);

  const std::string where_;
  std::map<std::uint64_t, std::unique_ptr<Pending>> pending_;
  std::deque<std::string> outbox_;
  std::uint64_t next_id_ = 1;
  bool ended_ = false;
  Failure failure_ = Failure::kLost;
  std::string reason_;
  Failure notice_failure_ = Failure::kLost;
  std::string notice_;
};

}  // namespace porthole::client
