#include "ts2021/h2.h"

#include <nghttp2/nghttp2.h>

#include <algorithm>
#include <deque>
#include <map>

#include "base/assert.h"
#include "crypto/secret.h"
#include "ts2021/limits.h"

namespace porthole::ts2021 {
namespace {

struct FreeSession {
  void operator()(nghttp2_session* s) const { nghttp2_session_del(s); }
};
using SessionPtr = std::unique_ptr<nghttp2_session, FreeSession>;

struct FreeCallbacks {
  void operator()(nghttp2_session_callbacks* c) const { nghttp2_session_callbacks_del(c); }
};
struct FreeOption {
  void operator()(nghttp2_option* o) const { nghttp2_option_del(o); }
};

std::unique_ptr<nghttp2_session_callbacks, FreeCallbacks> new_callbacks() {
  nghttp2_session_callbacks* c = nullptr;
  PORTHOLE_ASSERT(nghttp2_session_callbacks_new(&c) == 0);
  return std::unique_ptr<nghttp2_session_callbacks, FreeCallbacks>(c);
}

std::unique_ptr<nghttp2_option, FreeOption> new_options() {
  nghttp2_option* o = nullptr;
  PORTHOLE_ASSERT(nghttp2_option_new(&o) == 0);
  nghttp2_option_set_max_outbound_ack(o, kControlFramesMax);
  nghttp2_option_set_max_deflate_dynamic_table_size(o, 4096);
  nghttp2_option_set_no_closed_streams(o, 1);
  return std::unique_ptr<nghttp2_option, FreeOption>(o);
}

nghttp2_nv pair(std::string_view name, std::string_view value) {
  // libnghttp2 copies both; its structure only lacks the const.
  auto raw = [](std::string_view s) {
    return const_cast<std::uint8_t*>(reinterpret_cast<const std::uint8_t*>(s.data()));
  };
  return {raw(name), raw(value), name.size(), value.size(), NGHTTP2_NV_FLAG_NONE};
}

std::string_view view(const std::uint8_t* data, std::size_t size) {
  return {reinterpret_cast<const char*>(data), size};
}

// A body on its way out; wiped, because a register request may hold a pre-auth key.
struct OutgoingBody {
  OutgoingBody() = default;
  OutgoingBody(const OutgoingBody&) = delete;
  OutgoingBody& operator=(const OutgoingBody&) = delete;
  ~OutgoingBody() { crypto::wipe(bytes); }

  std::size_t left() const { return bytes.size() - sent; }
  std::size_t take(MutBytes out) {
    std::size_t n = std::min(out.size(), left());
    std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(sent), n, out.begin());
    sent += n;
    if (sent == bytes.size()) {
      crypto::wipe(bytes);
      bytes.clear();
      sent = 0;
    }
    return n;
  }
  void put(Bytes more) {
    // Sent bytes are dropped once they are the larger half, so that moving the rest costs at most as much as sending.
    if (sent > bytes.size() / 2) {
      bytes.erase(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(sent));
      sent = 0;
    }
    append(bytes, more);
  }

  ByteVector bytes;
  std::size_t sent = 0;
};

// Header list of one message while it arrives.
struct IncomingHeaders {
  std::string method, path;
  int status = 0;
  Headers fields;
  std::size_t size = 0;

  void clear() { *this = {}; }
  // False: beyond the limits.
  bool add(std::string_view name, std::string_view value) {
    size += name.size() + value.size() + 32;  // RFC 9113 section 6.5.2 counts 32 per field
    if (size > kHeaderListSizeMax || fields.size() >= kHeaderCountMax) return false;
    if (name == ":method") method = value;
    else if (name == ":path") path = value;
    else if (name == ":status") status = value.size() == 3 ? (value[0] - '0') * 100 + (value[1] - '0') * 10 + (value[2] - '0') : 0;
    else if (!name.starts_with(':')) fields.push_back({std::string(name), std::string(value)});
    return true;
  }
};

// Moves libnghttp2's pieces into buffers of any size.
class OutputPump {
 public:
  std::size_t produce(nghttp2_session* session, MutBytes out) {
    std::size_t written = 0;
    while (written < out.size()) {
      if (pending_at_ < pending_.size()) {
        std::size_t n = std::min(out.size() - written, pending_.size() - pending_at_);
        std::copy_n(pending_.begin() + static_cast<std::ptrdiff_t>(pending_at_), n,
                    out.begin() + static_cast<std::ptrdiff_t>(written));
        pending_at_ += n;
        written += n;
        continue;
      }
      const std::uint8_t* data = nullptr;
      const ssize_t size = nghttp2_session_mem_send(session, &data);
      if (size <= 0) break;
      Bytes piece(data, static_cast<std::size_t>(size));
      std::size_t n = std::min(out.size() - written, piece.size());
      std::copy_n(piece.begin(), n, out.begin() + static_cast<std::ptrdiff_t>(written));
      written += n;
      crypto::wipe(pending_);
      pending_.assign(piece.begin() + static_cast<std::ptrdiff_t>(n), piece.end());
      pending_at_ = 0;
    }
    return written;
  }
  bool has_output(nghttp2_session* session) const {
    return pending_at_ < pending_.size() || nghttp2_session_want_write(session) != 0;
  }
  bool finished(nghttp2_session* session) const {
    return !has_output(session) && nghttp2_session_want_read(session) == 0;
  }

 private:
  ByteVector pending_;
  std::size_t pending_at_ = 0;
};

Status feed(nghttp2_session* session, Bytes bytes, std::string_view who) {
  const ssize_t n = nghttp2_session_mem_recv(session, bytes.data(), bytes.size());
  if (n < 0) {
    return Error{ErrorCode::kProtocol,
                 "the " + std::string(who) + " broke HTTP/2: " + nghttp2_strerror(static_cast<int>(n))};
  }
  // After a fatal error of the peer's libnghttp2 wants to say GOAWAY and then nothing more.
  if (nghttp2_session_want_read(session) == 0) {
    return Error{ErrorCode::kReset, "the HTTP/2 session with the " + std::string(who) + " is over"};
  }
  return {};
}

}  // namespace

std::string_view find_header(const Headers& headers, std::string_view name) {
  for (const Header& h : headers) {
    if (h.name == name) return h.value;
  }
  return {};
}

// ---- client --------------------------------------------------------------------------------------------------------

struct H2Client::Impl {
  struct Stream {
    OutgoingBody body;
    IncomingHeaders headers;
    bool answered = false;   // the final header block was handed out
    bool cancelled = false;  // by us: no more events
  };

  SessionPtr session;
  std::string authority;
  std::map<H2StreamId, std::unique_ptr<Stream>> streams;
  std::deque<H2ClientEvent> events;
  OutputPump pump;
  bool going_away = false;

  Stream* find(H2StreamId id) {
    auto it = streams.find(id);
    return it == streams.end() ? nullptr : it->second.get();
  }
  static Impl& self(void* user) { return *static_cast<Impl*>(user); }

  static int on_begin_headers(nghttp2_session*, const nghttp2_frame* frame, void* user) {
    if (Stream* s = self(user).find(frame->hd.stream_id)) s->headers.clear();
    return 0;
  }
  static int on_header(nghttp2_session*, const nghttp2_frame* frame, const std::uint8_t* name, std::size_t name_size,
                       const std::uint8_t* value, std::size_t value_size, std::uint8_t, void* user) {
    Stream* s = self(user).find(frame->hd.stream_id);
    if (s == nullptr) return 0;
    return s->headers.add(view(name, name_size), view(value, value_size)) ? 0
                                                                           : NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
  }
  static int on_frame(nghttp2_session*, const nghttp2_frame* frame, void* user) {
    Impl& i = self(user);
    if (frame->hd.type == NGHTTP2_HEADERS) {
      Stream* s = i.find(frame->hd.stream_id);
      // 1xx answers come before the real one; trailers, after it, are of no interest.
      if (s != nullptr && !s->answered && !s->cancelled && s->headers.status >= 200) {
        s->answered = true;
        i.events.push_back(H2Response{frame->hd.stream_id, s->headers.status, std::move(s->headers.fields)});
      }
    } else if (frame->hd.type == NGHTTP2_PING && (frame->hd.flags & NGHTTP2_FLAG_ACK) != 0) {
      i.events.push_back(H2Pong{});
    } else if (frame->hd.type == NGHTTP2_GOAWAY) {
      i.going_away = true;
      i.events.push_back(H2GoAway{frame->goaway.last_stream_id, frame->goaway.error_code});
    }
    return 0;
  }
  static int on_data(nghttp2_session*, std::uint8_t, std::int32_t id, const std::uint8_t* data, std::size_t size,
                     void* user) {
    Impl& i = self(user);
    Stream* s = i.find(id);
    if (s != nullptr && !s->cancelled && size != 0) i.events.push_back(H2Data{id, ByteVector(data, data + size)});
    return 0;
  }
  static int on_close(nghttp2_session*, std::int32_t id, std::uint32_t error_code, void* user) {
    Impl& i = self(user);
    Stream* s = i.find(id);
    if (s == nullptr) return 0;
    if (!s->cancelled) i.events.push_back(H2Closed{id, error_code});
    i.streams.erase(id);
    return 0;
  }
  static ssize_t read_body(nghttp2_session*, std::int32_t, std::uint8_t* out, std::size_t room, std::uint32_t* flags,
                           nghttp2_data_source* source, void*) {
    auto* body = static_cast<OutgoingBody*>(source->ptr);
    std::size_t n = body->take({out, room});
    if (body->left() == 0) *flags |= NGHTTP2_DATA_FLAG_EOF;
    return static_cast<ssize_t>(n);
  }
};

H2Client::H2Client(std::string authority) : impl_(std::make_unique<Impl>()) {
  impl_->authority = std::move(authority);
  auto callbacks = new_callbacks();
  nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks.get(), Impl::on_begin_headers);
  nghttp2_session_callbacks_set_on_header_callback(callbacks.get(), Impl::on_header);
  nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks.get(), Impl::on_frame);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks.get(), Impl::on_data);
  nghttp2_session_callbacks_set_on_stream_close_callback(callbacks.get(), Impl::on_close);
  nghttp2_session* session = nullptr;
  PORTHOLE_ASSERT(nghttp2_session_client_new2(&session, callbacks.get(), impl_.get(), new_options().get()) == 0);
  impl_->session.reset(session);

  const nghttp2_settings_entry settings[] = {
      {NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
      {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, static_cast<std::uint32_t>(kClientStreamWindow)},
      {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, static_cast<std::uint32_t>(kHeaderListSizeMax)},
  };
  PORTHOLE_ASSERT(nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, settings, std::size(settings)) == 0);
  PORTHOLE_ASSERT(nghttp2_session_set_local_window_size(session, NGHTTP2_FLAG_NONE, 0, kClientConnectionWindow) == 0);
}
H2Client::~H2Client() = default;
H2Client::H2Client(H2Client&&) noexcept = default;
H2Client& H2Client::operator=(H2Client&&) noexcept = default;

Result<H2StreamId> H2Client::submit(std::string_view method, std::string_view path, const Headers& headers,
                                    Bytes body) {
  if (impl_->going_away) return Error{ErrorCode::kReset, "the control server is closing this connection"};
  std::vector<nghttp2_nv> fields{pair(":method", method), pair(":scheme", "https"), pair(":authority", impl_->authority),
                                 pair(":path", path)};
  for (const Header& h : headers) fields.push_back(pair(h.name, h.value));
  const std::string length = std::to_string(body.size());
  if (!body.empty()) fields.push_back(pair("content-length", length));

  auto stream = std::make_unique<Impl::Stream>();
  stream->body.bytes = to_vector(body);
  nghttp2_data_provider provider{};
  provider.source.ptr = &stream->body;
  provider.read_callback = Impl::read_body;
  const std::int32_t id = nghttp2_submit_request(impl_->session.get(), nullptr, fields.data(), fields.size(),
                                                 body.empty() ? nullptr : &provider, nullptr);
  if (id < 0) return Error{ErrorCode::kReset, std::string("no further request fits: ") + nghttp2_strerror(id)};
  impl_->streams.emplace(id, std::move(stream));
  return id;
}

void H2Client::cancel(H2StreamId id) {
  Impl::Stream* s = impl_->find(id);
  if (s == nullptr || s->cancelled) return;
  s->cancelled = true;
  std::erase_if(impl_->events, [id](const H2ClientEvent& e) {
    if (const auto* response = std::get_if<H2Response>(&e)) return response->stream == id;
    if (const auto* data = std::get_if<H2Data>(&e)) return data->stream == id;
    if (const auto* closed = std::get_if<H2Closed>(&e)) return closed->stream == id;
    return false;
  });
  nghttp2_submit_rst_stream(impl_->session.get(), NGHTTP2_FLAG_NONE, id, NGHTTP2_CANCEL);
}

void H2Client::ping() { nghttp2_submit_ping(impl_->session.get(), NGHTTP2_FLAG_NONE, nullptr); }

void H2Client::go_away() {
  nghttp2_submit_goaway(impl_->session.get(), NGHTTP2_FLAG_NONE, 0, NGHTTP2_NO_ERROR, nullptr, 0);
}

Status H2Client::consume(Bytes bytes) { return feed(impl_->session.get(), bytes, "control server"); }
std::size_t H2Client::produce(MutBytes out) { return impl_->pump.produce(impl_->session.get(), out); }
bool H2Client::has_output() const { return impl_->pump.has_output(impl_->session.get()); }
bool H2Client::finished() const { return impl_->pump.finished(impl_->session.get()); }

std::optional<H2ClientEvent> H2Client::poll_event() {
  if (impl_->events.empty()) return std::nullopt;
  H2ClientEvent event = std::move(impl_->events.front());
  impl_->events.pop_front();
  return event;
}

// ---- server --------------------------------------------------------------------------------------------------------

struct H2Server::Impl {
  // Streams that a peer may reset before completing others as well: opening and resetting is cheap for it and not for
  // us (CVE-2023-44487). Each completed stream earns one back.
  static constexpr int kResetBudget = 200;

  struct Stream {
    IncomingHeaders headers;
    ByteVector body;
    std::size_t discarded = 0;
    bool refused = false;   // answered early; the rest of the body is read over
    bool complete = false;  // the request was handed out
    bool answered = false;
    bool ended = false;     // no more data follows
    OutgoingBody out;
  };

  SessionPtr session;
  std::map<H2StreamId, std::unique_ptr<Stream>> streams;
  std::deque<H2ServerEvent> events;
  OutputPump pump;
  std::size_t bodies_size = 0;
  int reset_budget = kResetBudget;

  Stream* find(H2StreamId id) const {
    auto it = streams.find(id);
    return it == streams.end() ? nullptr : it->second.get();
  }
  static Impl& self(void* user) { return *static_cast<Impl*>(user); }

  static int on_begin_headers(nghttp2_session*, const nghttp2_frame* frame, void* user) {
    Impl& i = self(user);
    if (frame->hd.type == NGHTTP2_HEADERS && frame->headers.cat == NGHTTP2_HCAT_REQUEST) {
      i.streams.emplace(frame->hd.stream_id, std::make_unique<Stream>());
    }
    return 0;
  }
  static int on_header(nghttp2_session*, const nghttp2_frame* frame, const std::uint8_t* name, std::size_t name_size,
                       const std::uint8_t* value, std::size_t value_size, std::uint8_t, void* user) {
    Stream* s = self(user).find(frame->hd.stream_id);
    if (s == nullptr) return 0;
    return s->headers.add(view(name, name_size), view(value, value_size)) ? 0
                                                                           : NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE;
  }
  static int on_data(nghttp2_session* session, std::uint8_t, std::int32_t id, const std::uint8_t* data,
                     std::size_t size, void* user) {
    Impl& i = self(user);
    Stream* s = i.find(id);
    if (s == nullptr) return 0;
    if (!s->refused && (s->body.size() + size > kRequestBodySizeMax || i.bodies_size + size > kServerBodiesSizeMax)) {
      s->refused = true;
      i.release_body(*s);
      constexpr std::string_view kText = "request body too large\n";
      i.answer(id, *s, 413, {{"content-type", "text/plain"}}, as_bytes(kText), true);
    }
    if (s->refused) {
      s->discarded += size;
      if (s->discarded > kRequestBodySizeMax) {
        nghttp2_submit_rst_stream(session, NGHTTP2_FLAG_NONE, id, NGHTTP2_ENHANCE_YOUR_CALM);
      }
      return 0;
    }
    append(s->body, Bytes(data, size));
    i.bodies_size += size;
    return 0;
  }
  static int on_frame(nghttp2_session*, const nghttp2_frame* frame, void* user) {
    Impl& i = self(user);
    const bool may_complete = frame->hd.type == NGHTTP2_HEADERS || frame->hd.type == NGHTTP2_DATA;
    if (!may_complete || (frame->hd.flags & NGHTTP2_FLAG_END_STREAM) == 0) return 0;
    Stream* s = i.find(frame->hd.stream_id);
    if (s == nullptr || s->complete || s->refused) return 0;
    s->complete = true;
    i.bodies_size -= s->body.size();
    i.events.push_back(H2Request{frame->hd.stream_id, std::move(s->headers.method), std::move(s->headers.path),
                                 std::move(s->headers.fields), std::move(s->body)});
    s->body.clear();
    return 0;
  }
  static int on_close(nghttp2_session*, std::int32_t id, std::uint32_t error_code, void* user) {
    Impl& i = self(user);
    Stream* s = i.find(id);
    if (s == nullptr) return 0;
    if (!s->complete) i.release_body(*s);
    const bool finished = error_code == NGHTTP2_NO_ERROR && s->ended;
    i.reset_budget = finished ? std::min(i.reset_budget + 1, kResetBudget) : i.reset_budget - 1;
    if (s->complete) i.events.push_back(H2StreamEnded{id, error_code});
    i.streams.erase(id);
    return 0;
  }
  static ssize_t read_answer(nghttp2_session*, std::int32_t, std::uint8_t* out, std::size_t room, std::uint32_t* flags,
                             nghttp2_data_source* source, void*) {
    auto* stream = static_cast<Stream*>(source->ptr);
    std::size_t n = stream->out.take({out, room});
    if (stream->out.left() == 0 && stream->ended) *flags |= NGHTTP2_DATA_FLAG_EOF;
    else if (n == 0) return NGHTTP2_ERR_DEFERRED;
    return static_cast<ssize_t>(n);
  }

  void release_body(Stream& s) {
    bodies_size -= s.body.size();
    s.body = ByteVector();
  }
  bool answer(H2StreamId id, Stream& s, int status, const Headers& headers, Bytes body, bool end) {
    if (s.answered) return false;
    s.answered = true;
    s.ended = end;
    s.out.put(body);
    const std::string status_text = std::to_string(status);
    const std::string length = std::to_string(body.size());
    std::vector<nghttp2_nv> fields{pair(":status", status_text)};
    for (const Header& h : headers) fields.push_back(pair(h.name, h.value));
    if (end) fields.push_back(pair("content-length", length));
    nghttp2_data_provider provider{};
    provider.source.ptr = &s;
    provider.read_callback = read_answer;
    return nghttp2_submit_response(session.get(), id, fields.data(), fields.size(),
                                   end && body.empty() ? nullptr : &provider) == 0;
  }
};

H2Server::H2Server() : impl_(std::make_unique<Impl>()) {
  auto callbacks = new_callbacks();
  nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks.get(), Impl::on_begin_headers);
  nghttp2_session_callbacks_set_on_header_callback(callbacks.get(), Impl::on_header);
  nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks.get(), Impl::on_frame);
  nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks.get(), Impl::on_data);
  nghttp2_session_callbacks_set_on_stream_close_callback(callbacks.get(), Impl::on_close);
  nghttp2_session* session = nullptr;
  PORTHOLE_ASSERT(nghttp2_session_server_new2(&session, callbacks.get(), impl_.get(), new_options().get()) == 0);
  impl_->session.reset(session);

  const nghttp2_settings_entry settings[] = {
      {NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, kServerStreamsMax},
      {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, static_cast<std::uint32_t>(kServerStreamWindow)},
      {NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, static_cast<std::uint32_t>(kHeaderListSizeMax)},
  };
  PORTHOLE_ASSERT(nghttp2_submit_settings(session, NGHTTP2_FLAG_NONE, settings, std::size(settings)) == 0);
  PORTHOLE_ASSERT(nghttp2_session_set_local_window_size(session, NGHTTP2_FLAG_NONE, 0, kServerConnectionWindow) == 0);
}
H2Server::~H2Server() = default;
H2Server::H2Server(H2Server&&) noexcept = default;
H2Server& H2Server::operator=(H2Server&&) noexcept = default;

bool H2Server::respond(H2StreamId id, int status, const Headers& headers, Bytes body) {
  Impl::Stream* s = impl_->find(id);
  return s != nullptr && impl_->answer(id, *s, status, headers, body, true);
}

bool H2Server::respond_streaming(H2StreamId id, int status, const Headers& headers) {
  Impl::Stream* s = impl_->find(id);
  return s != nullptr && impl_->answer(id, *s, status, headers, {}, false);
}

bool H2Server::send_data(H2StreamId id, Bytes bytes) {
  Impl::Stream* s = impl_->find(id);
  if (s == nullptr || !s->answered || s->ended) return false;
  if (s->out.left() + bytes.size() > kServerStreamQueueSizeMax) return false;
  s->out.put(bytes);
  nghttp2_session_resume_data(impl_->session.get(), id);
  return true;
}

std::size_t H2Server::queued(H2StreamId id) const {
  Impl::Stream* s = impl_->find(id);
  return s == nullptr ? 0 : s->out.left();
}

std::size_t H2Server::queued() const {
  std::size_t size = 0;  // of at most kServerStreamsMax
  for (const auto& [id, s] : impl_->streams) size += s->out.left();
  return size;
}

void H2Server::end(H2StreamId id) {
  Impl::Stream* s = impl_->find(id);
  if (s == nullptr || !s->answered || s->ended) return;
  s->ended = true;
  nghttp2_session_resume_data(impl_->session.get(), id);
}

void H2Server::reset(H2StreamId id, std::uint32_t error_code) {
  if (impl_->find(id) == nullptr) return;
  nghttp2_submit_rst_stream(impl_->session.get(), NGHTTP2_FLAG_NONE, id, error_code);
}

void H2Server::go_away() {
  nghttp2_submit_goaway(impl_->session.get(), NGHTTP2_FLAG_NONE,
                        nghttp2_session_get_last_proc_stream_id(impl_->session.get()), NGHTTP2_NO_ERROR, nullptr, 0);
}

Status H2Server::consume(Bytes bytes) {
  Status fed = feed(impl_->session.get(), bytes, "client");
  if (fed.ok() && impl_->reset_budget < 0) return Error{ErrorCode::kLimit, "the client opens and resets streams in a flood"};
  return fed;
}
std::size_t H2Server::produce(MutBytes out) { return impl_->pump.produce(impl_->session.get(), out); }
bool H2Server::has_output() const { return impl_->pump.has_output(impl_->session.get()); }
bool H2Server::finished() const { return impl_->pump.finished(impl_->session.get()); }

std::optional<H2ServerEvent> H2Server::poll_event() {
  if (impl_->events.empty()) return std::nullopt;
  H2ServerEvent event = std::move(impl_->events.front());
  impl_->events.pop_front();
  return event;
}

}  // namespace porthole::ts2021
