// One client's session as a machine without I/O: messages in, messages and work orders out.
//
//   handle_message()  bytes of one WebSocket message
//   poll_action()     work for the host, which answers with the matching *_done / *_made / *_opened / *_read
//   produce()         the next message to send; asking for it is what makes file data being read ahead
//
// The host calls from one thread and stops reading from the network while wants_input() is false. Nothing but
// LoginRequest and Ping is answered before a login succeeded. Once closing() holds, the host sends what produce() still
// has and closes the connection.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <variant>

#include "serve/catalog.h"

namespace porthole::session::pb {
class Envelope;
class LoginRequest;
class ListRequest;
class Read;
}  // namespace porthole::session::pb

namespace porthole::serve {

struct CheckLogin {
  std::uint64_t id;
  std::string password;
  std::string device_id;
  std::string device_name;
  bool want_remote;
  bool new_key;
};
struct MakePoster {
  std::uint64_t id;
  std::string item_id;
};
struct OpenItem {
  std::uint64_t id;
  std::string item_id;
};
struct ReadChunk {
  std::uint64_t id;
  std::uint64_t offset;
  std::size_t size;
};
struct CloseItem {
  std::uint64_t id;
};
using Action = std::variant<CheckLogin, MakePoster, OpenItem, ReadChunk, CloseItem>;

struct LoginOutcome {
  bool success = false;
  std::string error;
  std::uint32_t retry_after_s = 0;
  std::string server_name, server_id;
  std::string remote_problem, remote_hostname, remote_ip, coordination_url, tailnet_preauth_key;
};

enum class NoticeKind { kRevoked, kShuttingDown, kLibraryChanged };

class SessionMachine {
 public:
  explicit SessionMachine(std::function<CatalogPtr()> catalog);

  void handle_message(std::string_view bytes);
  std::optional<Action> poll_action();
  std::optional<std::string> produce();
  bool wants_input() const;
  bool closing() const { return closing_; }
  bool logged_in() const { return logged_in_; }
  std::size_t stream_count() const { return streams_.size(); }
  std::uint64_t bytes_sent() const { return bytes_sent_; }

  void login_done(std::uint64_t id, const LoginOutcome& outcome);
  void poster_made(std::uint64_t id, std::string_view content_type, std::string image, std::string_view error);
  // `error` empty: opened. A file that became shorter than the catalog says counts with its size now.
  void item_opened(std::uint64_t id, std::uint64_t size_bytes, std::string_view content_type, std::string_view error);
  // Exactly the bytes asked for, or a reason.
  void chunk_read(std::uint64_t id, std::string content, std::string_view error);

  void notify(NoticeKind kind, std::string_view message);
  // Ends the session after what is queued (file data is dropped).
  void close();

 private:
  struct Stream {
    std::uint64_t offset = 0;  // next byte to read
    std::uint64_t length = 0;  // as asked for: 0 to the end
    std::uint64_t end = 0;
    std::uint64_t credit = 0;  // granted and not yet used
    bool opened = false;
    bool reading = false;
  };

  struct Message {
    std::uint64_t stream;  // file data of this stream; 0: anything else
    std::string bytes;
  };

  void handle_login(std::uint64_t id, const session::pb::LoginRequest& login);
  void handle_list(std::uint64_t id, const session::pb::ListRequest& list);
  void handle_read(std::uint64_t id, const session::pb::Read& read);
  void handle_close(std::uint64_t id);
  void send(const session::pb::Envelope& envelope);
  void drop_data(const std::function<bool(std::uint64_t)>& which);
  void fail(std::uint64_t id, int code, std::string_view message);
  void violate(std::uint64_t id, int code, std::string_view message);
  void finish_stream(std::map<std::uint64_t, Stream>::iterator stream);
  void read_ahead();

  std::function<CatalogPtr()> catalog_;
  std::deque<Action> actions_;
  std::deque<Message> outbox_;
  std::size_t outbox_bytes_ = 0;
  std::map<std::uint64_t, Stream> streams_;
  std::uint64_t last_stream_ = 0;  // whose turn it was
  std::uint64_t highest_read_ = 0;  // stream numbers only grow, so a late chunk never meets a newer stream
  std::size_t posters_ = 0;
  std::uint64_t login_id_ = 0;  // being checked; 0: none
  int attempts_ = 0;
  bool logged_in_ = false;
  bool closing_ = false;
  std::uint64_t bytes_sent_ = 0;
};

}  // namespace porthole::serve
