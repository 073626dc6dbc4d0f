#include "serve/session_machine.h"

#include <session.pb.h>

#include <utility>

#include "serve/limits.h"
#include "session/limits.h"
#include "session/names.h"

namespace porthole::serve {
namespace {

namespace pb = session::pb;
using session::kTextBytesMax;

pb::Envelope envelope_for(std::uint64_t id) {
  pb::Envelope e;
  e.set_version(session::kProtocolVersion);
  e.set_id(id);
  return e;
}

}  // namespace

SessionMachine::SessionMachine(std::function<CatalogPtr()> catalog) : catalog_(std::move(catalog)) {}

bool SessionMachine::wants_input() const { return !closing_ && outbox_bytes_ < kOutboxBytesMax; }

void SessionMachine::send(const pb::Envelope& envelope) {
  bool data = envelope.body_case() == pb::Envelope::kData;
  outbox_.push_back({data ? envelope.id() : 0, envelope.SerializeAsString()});
  outbox_bytes_ += outbox_.back().bytes.size();
}

void SessionMachine::drop_data(const std::function<bool(std::uint64_t)>& which) {
  std::erase_if(outbox_, [&](const Message& m) {
    if (m.stream == 0 || !which(m.stream)) return false;
    outbox_bytes_ -= m.bytes.size();
    return true;
  });
}

void SessionMachine::fail(std::uint64_t id, int code, std::string_view message) {
  pb::Envelope e = envelope_for(id);
  e.mutable_error()->set_code(static_cast<pb::Error::Code>(code));
  e.mutable_error()->set_message(session::clean_text(message, kTextBytesMax));
  send(e);
}

void SessionMachine::violate(std::uint64_t id, int code, std::string_view message) {
  fail(id, code, message);
  close();
}

void SessionMachine::close() {
  closing_ = true;
  for (const auto& [id, stream] : streams_) actions_.push_back(CloseItem{id});
  streams_.clear();
  drop_data([](std::uint64_t) { return true; });
}

void SessionMachine::handle_message(std::string_view bytes) {
  if (closing_) return;
  pb::Envelope e;
  if (bytes.size() > session::kRequestBytesMax || !e.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    return violate(0, pb::Error::BAD_MESSAGE, "this is not a message of the media session");
  if (e.version() != session::kProtocolVersion)
    return violate(e.id(), pb::Error::VERSION, "this server speaks version 1 of the media session only; update it");
  if (e.id() == 0) return violate(0, pb::Error::BAD_MESSAGE, "a request needs a number");
  if (e.body_case() == pb::Envelope::kPing) {
    if (e.ping().payload().size() > kTextBytesMax) return violate(e.id(), pb::Error::BAD_MESSAGE, "the ping is too long");
    pb::Envelope pong = envelope_for(e.id());
    pong.mutable_pong()->set_payload(e.ping().payload());
    return send(pong);
  }
  if (e.body_case() == pb::Envelope::kLogin) return handle_login(e.id(), e.login());
  if (!logged_in_) return violate(e.id(), pb::Error::NOT_LOGGED_IN, "log in first");
  switch (e.body_case()) {
    case pb::Envelope::kList:
      return handle_list(e.id(), e.list());
    case pb::Envelope::kPosterRequest: {
      if (posters_ >= kPostersInWorkMax) return fail(e.id(), pb::Error::BUSY, "too many posters asked for at once");
      CatalogPtr catalog = catalog_();
      const MediaItem* item = catalog->find(e.poster_request().item_id());
      if (!item) return fail(e.id(), pb::Error::NOT_FOUND, "there is no such item in the library");
      if (!item->has_poster) return fail(e.id(), pb::Error::NOT_FOUND, "this item has no poster");
      ++posters_;
      actions_.push_back(MakePoster{e.id(), item->id});
      return;
    }
    case pb::Envelope::kRead:
      return handle_read(e.id(), e.read());
    case pb::Envelope::kCredit: {
      // The stream may just have ended: then there is nobody to give it to, which is no fault of the client.
      auto it = streams_.find(e.id());
      if (it == streams_.end()) return;
      std::uint64_t granted = e.credit().bytes();
      if (granted > session::kCreditBytesMax || it->second.credit + granted > session::kCreditBytesMax)
        return violate(e.id(), pb::Error::LIMIT, "more credit than a stream may have");
      it->second.credit += granted;
      return;
    }
    case pb::Envelope::kClose:
      return handle_close(e.id());
    default:
      return violate(e.id(), pb::Error::BAD_MESSAGE, "this is not a request that this server knows");
  }
}

void SessionMachine::handle_login(std::uint64_t id, const pb::LoginRequest& login) {
  if (logged_in_) return violate(id, pb::Error::BAD_MESSAGE, "this session is logged in already");
  if (login_id_ != 0) return violate(id, pb::Error::BAD_MESSAGE, "one login at a time");
  if (login.password().size() > session::kPasswordBytesMax || login.device_name().size() > kTextBytesMax)
    return violate(id, pb::Error::BAD_MESSAGE, "the password or the device name is too long");
  auto plain = [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || c == '-'; };
  const std::string& device = login.device_id();
  if (device.size() != 36 || !std::all_of(device.begin(), device.end(), plain))
    return violate(id, pb::Error::BAD_MESSAGE, "the device id is not a UUID");
  login_id_ = id;
  actions_.push_back(CheckLogin{id, login.password(), device, session::clean_text(login.device_name(), 128),
                                login.want_remote(), login.new_key()});
}

void SessionMachine::login_done(std::uint64_t id, const LoginOutcome& outcome) {
  if (closing_ || id != login_id_) return;
  login_id_ = 0;
  pb::Envelope e = envelope_for(id);
  pb::LoginResponse& r = *e.mutable_login_response();
  r.set_success(outcome.success);
  r.set_error(outcome.error);
  r.set_retry_after_s(outcome.retry_after_s);
  if (outcome.success) {
    r.set_server_name(outcome.server_name);
    r.set_server_id(outcome.server_id);
    r.set_remote_problem(outcome.remote_problem);
    r.set_remote_hostname(outcome.remote_hostname);
    r.set_remote_ip(outcome.remote_ip);
    r.set_coordination_url(outcome.coordination_url);
    r.set_tailnet_preauth_key(outcome.tailnet_preauth_key);
    logged_in_ = true;
  }
  send(e);
  if (!outcome.success && ++attempts_ >= kAttemptsPerConnection) close();
}

void SessionMachine::handle_list(std::uint64_t id, const pb::ListRequest& list) {
  CatalogPtr catalog = catalog_();
  pb::Envelope e = envelope_for(id);
  pb::ListResponse& r = *e.mutable_list_response();
  r.set_total(static_cast<std::uint32_t>(catalog->items.size()));
  r.set_revision(catalog->revision);
  std::uint32_t limit = list.limit() == 0 ? session::kListPageMax : std::min(list.limit(), session::kListPageMax);
  for (std::size_t i = list.offset(); i < catalog->items.size() && limit > 0; ++i, --limit) {
    const MediaItem& from = catalog->items[i];
    pb::Item& to = *r.add_items();
    to.set_id(from.id);
    to.set_title(from.title);
    to.set_file_name(from.file_name);
    to.set_duration_ms(from.duration_ms);
    to.set_size_bytes(from.size_bytes);
    to.set_video_codec(from.video_codec);
    to.set_audio_codec(from.audio_codec);
    to.set_width(from.width);
    to.set_height(from.height);
    to.set_content_type(from.content_type);
    to.set_has_poster(from.has_poster);
    to.set_unplayable(from.unplayable);
  }
  send(e);
}

void SessionMachine::poster_made(std::uint64_t id, std::string_view content_type, std::string image,
                                 std::string_view error) {
  --posters_;
  if (closing_) return;
  if (!error.empty()) return fail(id, pb::Error::NOT_FOUND, error);
  pb::Envelope e = envelope_for(id);
  e.mutable_poster()->set_content_type(std::string(content_type));
  e.mutable_poster()->set_image(std::move(image));
  send(e);
}

void SessionMachine::handle_read(std::uint64_t id, const pb::Read& read) {
  if (id <= highest_read_) return violate(id, pb::Error::BAD_MESSAGE, "this request number was used before");
  highest_read_ = id;
  if (streams_.size() >= session::kStreamsMax) return fail(id, pb::Error::LIMIT, "too many streams are open");
  if (read.credit_bytes() > session::kCreditBytesMax)
    return violate(id, pb::Error::LIMIT, "more credit than a stream may have");
  CatalogPtr catalog = catalog_();
  const MediaItem* item = catalog->find(read.item_id());
  if (!item) return fail(id, pb::Error::NOT_FOUND, "there is no such item in the library");
  Stream stream;
  stream.offset = read.offset();
  stream.length = read.length();
  stream.credit = read.credit_bytes();
  streams_[id] = stream;
  actions_.push_back(OpenItem{id, item->id});
}

void SessionMachine::item_opened(std::uint64_t id, std::uint64_t size_bytes, std::string_view content_type,
                                 std::string_view error) {
  auto it = streams_.find(id);
  if (it == streams_.end()) return;  // closed meanwhile: CloseItem is on its way already
  Stream& s = it->second;
  if (!error.empty()) {
    fail(id, pb::Error::READ_FAILED, error);
    return finish_stream(it);
  }
  if (s.offset > size_bytes || (s.length != 0 && s.length > size_bytes - s.offset)) {
    fail(id, pb::Error::BAD_RANGE, "the range lies beyond the end of the item (" + std::to_string(size_bytes) + " bytes)");
    return finish_stream(it);
  }
  s.end = s.length == 0 ? size_bytes : s.offset + s.length;
  s.opened = true;
  pb::Envelope e = envelope_for(id);
  pb::Opened& o = *e.mutable_opened();
  o.set_size_bytes(size_bytes);
  o.set_content_type(std::string(content_type));
  o.set_offset(s.offset);
  o.set_length(s.end - s.offset);
  send(e);
  if (s.offset == s.end) {
    pb::Envelope end = envelope_for(id);
    end.mutable_end();
    send(end);
    finish_stream(it);
  }
}

void SessionMachine::chunk_read(std::uint64_t id, std::string content, std::string_view error) {
  auto it = streams_.find(id);
  if (it == streams_.end() || !it->second.reading) return;
  Stream& s = it->second;
  s.reading = false;
  if (!error.empty() || content.empty()) {
    fail(id, pb::Error::READ_FAILED, error.empty() ? "the file became shorter while it was read" : error);
    return finish_stream(it);
  }
  pb::Envelope e = envelope_for(id);
  std::size_t size = content.size();
  e.mutable_data()->set_offset(s.offset);
  e.mutable_data()->set_content(std::move(content));
  send(e);
  s.offset += size;
  s.credit -= size;
  bytes_sent_ += size;
  if (s.offset == s.end) {
    pb::Envelope end = envelope_for(id);
    end.mutable_end();
    send(end);
    finish_stream(it);
  }
}

void SessionMachine::handle_close(std::uint64_t id) {
  // What waits for a stream nobody wants would only delay the next one: a seek must not wait on a slow path.
  drop_data([&](std::uint64_t stream) { return stream == id; });
  auto it = streams_.find(id);
  if (it != streams_.end()) finish_stream(it);
}

void SessionMachine::finish_stream(std::map<std::uint64_t, Stream>::iterator stream) {
  actions_.push_back(CloseItem{stream->first});
  streams_.erase(stream);
}

// Orders one chunk for each stream that may send, in turn, while the outbox has room.
void SessionMachine::read_ahead() {
  if (closing_ || streams_.empty()) return;
  std::size_t ahead = outbox_bytes_;
  for (const auto& [id, s] : streams_)
    if (s.reading) ahead += session::kChunkBytes;
  auto it = streams_.upper_bound(last_stream_);
  for (std::size_t n = streams_.size(); n > 0 && ahead < kOutboxBytesMax; --n, ++it) {
    if (it == streams_.end()) it = streams_.begin();
    Stream& s = it->second;
    if (!s.opened || s.reading || s.credit == 0) continue;
    std::uint64_t size = std::min<std::uint64_t>({session::kChunkBytes, s.credit, s.end - s.offset});
    s.reading = true;
    ahead += session::kChunkBytes;
    last_stream_ = it->first;
    actions_.push_back(ReadChunk{it->first, s.offset, static_cast<std::size_t>(size)});
  }
}

std::optional<Action> SessionMachine::poll_action() {
  if (actions_.empty()) read_ahead();
  if (actions_.empty()) return std::nullopt;
  Action action = std::move(actions_.front());
  actions_.pop_front();
  return action;
}

std::optional<std::string> SessionMachine::produce() {
  if (outbox_.empty()) return std::nullopt;
  std::string message = std::move(outbox_.front().bytes);
  outbox_.pop_front();
  outbox_bytes_ -= message.size();
  return message;
}

void SessionMachine::notify(NoticeKind kind, std::string_view message) {
  if (closing_ || !logged_in_) return;
  pb::Envelope e = envelope_for(0);
  static constexpr pb::Notice::Kind kKinds[] = {pb::Notice::REVOKED, pb::Notice::SHUTTING_DOWN,
                                                pb::Notice::LIBRARY_CHANGED};
  e.mutable_notice()->set_kind(kKinds[static_cast<std::size_t>(kind)]);
  e.mutable_notice()->set_message(session::clean_text(message, kTextBytesMax));
  send(e);
}

}  // namespace porthole::serve
