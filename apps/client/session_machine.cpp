#include "client/session_machine.h"

#include <session.pb.h>

#include <algorithm>

#include "client/limits.h"
#include "session/limits.h"
#include "session/names.h"

namespace porthole::client {
namespace {

namespace pb = session::pb;

std::string said(const std::string& text) { return session::clean_text(text, session::kTextBytesMax); }

Failure failure_of(pb::Error::Code code) {
  switch (code) {
    case pb::Error::NOT_FOUND:
    case pb::Error::UNPLAYABLE:
    case pb::Error::BAD_RANGE:
      return Failure::kNotFound;
    case pb::Error::LIMIT:
    case pb::Error::BUSY:
      return Failure::kRefused;
    case pb::Error::READ_FAILED:
      return Failure::kFailed;
    default:
      return Failure::kProtocol;
  }
}

Item item_of(const pb::Item& i) {
  Item item;
  item.id = said(i.id());
  item.title = said(i.title());
  item.file_name = said(i.file_name());
  item.video_codec = said(i.video_codec());
  item.audio_codec = said(i.audio_codec());
  item.content_type = said(i.content_type());
  item.unplayable = said(i.unplayable());
  item.duration_ms = i.duration_ms();
  item.size_bytes = i.size_bytes();
  item.width = i.width();
  item.height = i.height();
  item.has_poster = i.has_poster();
  return item;
}

}  // namespace

struct SessionMachine::Pending {
  std::deque<pb::Envelope> answers;
  std::uint64_t data_allowed = 0;  // bytes of Data the server may still send
  int others_allowed = 1;          // other answers
  // Of a range: as asked for, then as opened.
  bool is_range = false;
  bool over = false;  // the server has forgotten it
  std::uint64_t offset = 0, length = 0;
  std::uint64_t position = 0;  // bytes handed out
  std::uint64_t consumed = 0;  // of these, not yet granted again
};

SessionMachine::SessionMachine(std::string where) : where_(std::move(where)) {}
SessionMachine::~SessionMachine() = default;

// ---- messages

void SessionMachine::end(Failure failure, std::string reason) {
  if (ended_) return;
  ended_ = true;
  failure_ = failure;
  reason_ = std::move(reason);
}

void SessionMachine::handle_loss(const std::string& why) {
  if (notice_.empty())
    end(Failure::kLost, "the connection to " + where_ + " was lost: " + why);
  else
    end(notice_failure_, notice_);
}

std::uint64_t SessionMachine::handle_message(std::string_view bytes) {
  pb::Envelope e;
  const bool good = !ended_ && e.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
  if (!good || e.version() != session::kProtocolVersion) {
    end(Failure::kProtocol, where_ + " sent something that is no message of a media session");
    return 0;
  }
  if (e.body_case() == pb::Envelope::kNotice) {
    if (e.notice().kind() == pb::Notice::REVOKED) {
      notice_failure_ = Failure::kRevoked;
      notice_ = "this device was revoked: " + where_ + " no longer accepts it";
    } else if (e.notice().kind() == pb::Notice::SHUTTING_DOWN) {
      notice_failure_ = Failure::kLost;
      notice_ = where_ + " is shutting down";
    }
    return 0;
  }
  if (e.id() == 0 && e.body_case() == pb::Envelope::kError) {
    end(Failure::kProtocol, where_ + " ended the session: " + said(e.error().message()));
    return 0;
  }
  const std::uint64_t id = e.id();
  auto it = pending_.find(id);
  if (it == pending_.end()) return 0;  // of a request given up meanwhile
  Pending& p = *it->second;
  const bool data = e.body_case() == pb::Envelope::kData;
  const std::uint64_t size = e.data().content().size();
  if (data ? size > p.data_allowed || p.answers.size() > kWindowBytes / 1024 : p.others_allowed == 0) {
    end(Failure::kProtocol, where_ + " sent more than was asked for");
    return 0;
  }
  if (data)
    p.data_allowed -= size;
  else
    --p.others_allowed;
  p.answers.push_back(std::move(e));
  return id;
}

std::optional<std::string> SessionMachine::produce() {
  if (outbox_.empty()) return std::nullopt;
  std::string out = std::move(outbox_.front());
  outbox_.pop_front();
  return out;
}

void SessionMachine::post(std::uint64_t id, pb::Envelope& e) {
  if (ended_) return;
  e.set_version(session::kProtocolVersion);
  e.set_id(id);
  outbox_.push_back(e.SerializeAsString());
}

std::uint64_t SessionMachine::send(pb::Envelope& e) {
  if (ended_) throw ClientError(failure_, reason_);
  const std::uint64_t id = next_id_++;
  pending_[id] = std::make_unique<Pending>();
  post(id, e);
  return id;
}

void SessionMachine::forget(std::uint64_t request) {
  auto it = pending_.find(request);
  if (it == pending_.end()) return;
  const bool open = it->second->is_range && !it->second->over;
  pending_.erase(it);
  if (!open) return;
  pb::Envelope e;
  e.mutable_close();
  post(request, e);
}

// ---- requests

std::uint64_t SessionMachine::ask_login(const LoginDetails& details) {
  pb::Envelope e;
  pb::LoginRequest& l = *e.mutable_login();
  l.set_password(details.password);
  l.set_device_id(details.device_id);
  l.set_device_name(session::clean_text(details.device_name, kDeviceNameBytesMax));
  l.set_want_remote(details.want_remote);
  l.set_new_key(details.new_key);
  return send(e);
}

std::uint64_t SessionMachine::ask_page(const Listing& listing) {
  pb::Envelope e;
  e.mutable_list()->set_offset(static_cast<std::uint32_t>(listing.items.size()));
  return send(e);
}

std::uint64_t SessionMachine::ask_poster(const std::string& item_id) {
  pb::Envelope e;
  e.mutable_poster_request()->set_item_id(item_id);
  return send(e);
}

std::uint64_t SessionMachine::ask_ping() {
  pb::Envelope e;
  e.mutable_ping();
  return send(e);
}

std::uint64_t SessionMachine::ask_range(const std::string& item_id, std::uint64_t offset, std::uint64_t length) {
  pb::Envelope e;
  pb::Read& r = *e.mutable_read();
  r.set_item_id(item_id);
  r.set_offset(offset);
  r.set_length(length);
  r.set_credit_bytes(kWindowBytes);
  const std::uint64_t id = send(e);
  Pending& p = *pending_.at(id);
  p.is_range = true;
  p.data_allowed = kWindowBytes;
  p.others_allowed = 2;  // Opened, and End or Error
  p.offset = offset;
  p.length = length;
  return id;
}

// ---- answers

bool SessionMachine::has_answer(std::uint64_t request) const {
  auto it = pending_.find(request);
  return ended_ || (it != pending_.end() && !it->second->answers.empty());
}

// What came before the end is still an answer. `expected` 0: the caller looks itself.
pb::Envelope SessionMachine::take(std::uint64_t request, int expected) {
  auto it = pending_.find(request);
  if (it == pending_.end() || it->second->answers.empty()) throw ClientError(failure_, reason_);
  pb::Envelope out = std::move(it->second->answers.front());
  it->second->answers.pop_front();
  if (out.body_case() == pb::Envelope::kError) {
    it->second->over = true;
    const std::string words = said(out.error().message());
    throw ClientError(failure_of(out.error().code()), words.empty() ? where_ + " refused it and does not say why" : words);
  }
  if (expected != 0 && out.body_case() != expected) throw ClientError(Failure::kProtocol, where_ + " gave an answer that does not fit");
  return out;
}

LoginAnswer SessionMachine::login(std::uint64_t request) {
  const pb::Envelope answer = take(request, pb::Envelope::kLoginResponse);
  const pb::LoginResponse& r = answer.login_response();
  if (!r.success()) {
    std::string why = r.error().empty() ? "the server refused the login" : said(r.error());
    throw ClientError(r.retry_after_s() > 0 ? Failure::kRefused : Failure::kWrongPassword, where_ + ": " + why);
  }
  LoginAnswer out;
  out.server_name = session::clean_text(r.server_name(), kDeviceNameBytesMax);
  out.server_id = said(r.server_id());
  out.remote_problem = said(r.remote_problem());
  out.remote_hostname = said(r.remote_hostname());
  out.remote_ip = said(r.remote_ip());
  out.coordination_url = said(r.coordination_url());
  out.tailnet_preauth_key = said(r.tailnet_preauth_key());
  return out;
}

bool SessionMachine::page(std::uint64_t request, Listing& listing) {
  const pb::Envelope answer = take(request, pb::Envelope::kListResponse);
  const pb::ListResponse& r = answer.list_response();
  if (!listing.items.empty() && r.revision() != listing.revision) {
    if (++listing.starts > kListStartsMax)
      throw ClientError(Failure::kFailed, "the library of " + where_ + " keeps changing; try again later");
    listing.items.clear();  // changed in between: from the start
    return false;
  }
  listing.revision = r.revision();
  listing.total = r.total();
  if (listing.total > kListItemsMax || r.items_size() > static_cast<int>(kListItemsMax - listing.items.size()))
    throw ClientError(Failure::kProtocol, where_ + ": the library is larger than can be");
  for (const pb::Item& i : r.items()) listing.items.push_back(item_of(i));
  return r.items_size() == 0 || listing.items.size() >= listing.total;
}

PosterImage SessionMachine::poster(std::uint64_t request) {
  pb::Envelope answer = take(request, pb::Envelope::kPoster);
  PosterImage out;
  out.content_type = said(answer.poster().content_type());
  out.image = std::move(*answer.mutable_poster()->mutable_image());
  return out;
}

void SessionMachine::pong(std::uint64_t request) { take(request, pb::Envelope::kPong); }

OpenedRange SessionMachine::opened(std::uint64_t request) {
  const pb::Envelope answer = take(request, 0);
  Pending& p = *pending_.at(request);
  const pb::Opened& o = answer.opened();
  const bool fits = answer.body_case() == pb::Envelope::kOpened && o.offset() == p.offset && o.offset() <= o.size_bytes() &&
                    o.length() <= o.size_bytes() - o.offset() &&
                    o.length() == (p.length == 0 ? o.size_bytes() - o.offset() : p.length);
  if (!fits) throw ClientError(Failure::kProtocol, where_ + " opened something else than was asked for");
  p.length = o.length();
  return {o.size_bytes(), o.offset(), o.length(), said(o.content_type())};
}

std::string SessionMachine::data(std::uint64_t request) {
  if (auto it = pending_.find(request); it != pending_.end() && it->second->over) return {};
  pb::Envelope answer = take(request, 0);
  Pending& p = *pending_.at(request);
  if (answer.body_case() == pb::Envelope::kEnd && p.position == p.length) {
    p.over = true;
    return {};
  }
  if (answer.body_case() != pb::Envelope::kData || answer.data().offset() != p.offset + p.position ||
      answer.data().content().empty() || answer.data().content().size() > p.length - p.position)
    throw ClientError(Failure::kProtocol, where_ + " sent bytes that were not asked for");
  std::string out = std::move(*answer.mutable_data()->mutable_content());
  p.position += out.size();
  p.consumed += out.size();
  if (p.consumed >= kWindowBytes / 4 && p.position < p.length) {
    pb::Envelope e;
    e.mutable_credit()->set_bytes(p.consumed);
    p.data_allowed += p.consumed;
    p.consumed = 0;
    post(request, e);
  }
  return out;
}

}  // namespace porthole::client
