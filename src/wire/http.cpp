#include "wire/http.h"

#include <algorithm>

namespace porthole::wire {
namespace {

// Chunk-size line and single trailer line: size digits plus the extensions some servers add.
constexpr std::size_t kHttpChunkLineMax = 256;
// Bytes that are not body in one chunked message, so that a stream of tiny chunks or trailers ends.
constexpr std::size_t kHttpChunkOverheadMax = 64 * 1024;
// 2^52: far above any body kept in memory and free of overflow when digits are added.
constexpr int kHttpChunkDigitsMax = 13;

constexpr std::string_view kEndOfHead = "\r\n\r\n";

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

// RFC 9110 section 5.6.2.
bool is_token_char(char c) {
  if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) return true;
  return std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
}
bool is_token(std::string_view s) { return !s.empty() && std::all_of(s.begin(), s.end(), is_token_char); }

bool is_value_char(char c) {
  auto u = static_cast<unsigned char>(c);
  return (u >= 0x20 && u != 0x7f) || c == '\t';
}
bool is_value(std::string_view s) { return std::all_of(s.begin(), s.end(), is_value_char); }

bool is_target_char(char c) {
  auto u = static_cast<unsigned char>(c);
  return u > 0x20 && u != 0x7f;
}
bool is_target(std::string_view s) { return !s.empty() && std::all_of(s.begin(), s.end(), is_target_char); }

std::string_view trim(std::string_view s) {
  while (!s.empty() && (s.front() == ' ' || s.front() == '\t')) s.remove_prefix(1);
  while (!s.empty() && (s.back() == ' ' || s.back() == '\t')) s.remove_suffix(1);
  return s;
}

std::optional<std::uint64_t> parse_length(std::string_view s) {
  if (s.empty() || s.size() > 18) return std::nullopt;
  std::uint64_t v = 0;
  for (char c : s) {
    if (c < '0' || c > '9') return std::nullopt;
    v = v * 10 + static_cast<std::uint64_t>(c - '0');
  }
  return v;
}

Error bad(std::string_view what) { return {ErrorCode::kProtocol, "not a valid HTTP message: " + std::string(what)}; }

}  // namespace

bool equal_ignore_case(std::string_view a, std::string_view b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](char x, char y) { return lower(x) == lower(y); });
}

HttpHeadParser::HttpHeadParser(HttpKind kind, const HttpLimits& limits) : kind_(kind), limits_(limits) {}

Result<std::size_t> HttpHeadParser::consume(Bytes in) {
  if (done_) return std::size_t{0};
  std::size_t n = 0;
  while (n < in.size()) {
    char c = static_cast<char>(in[n++]);
    if (head_.size() + n > limits_.head_size_max) return Error{ErrorCode::kLimit, "the HTTP head is larger than allowed"};
    // CR LF CR LF: after a mismatch only a CR can start the sequence again.
    if (c == kEndOfHead[static_cast<std::size_t>(end_match_)]) ++end_match_;
    else end_match_ = c == '\r' ? 1 : 0;
    if (end_match_ == 4) break;
  }
  head_.append(as_text(in.first(n)));
  if (end_match_ == 4) {
    if (Status s = parse(); !s) return s.error();
    done_ = true;
  } else if (head_.size() >= 8 && kind_ == HttpKind::kResponse && !head_.starts_with("HTTP/1.")) {
    return bad("the answer does not start with HTTP/1");
  } else if (!head_.empty() && kind_ == HttpKind::kRequest && !is_token_char(head_.front())) {
    return bad("it is no HTTP request");  // TLS, most often: say so now, since no end of the head may ever come
  }
  return n;
}

Status HttpHeadParser::parse() {
  std::string_view all = head_;
  std::size_t begin = 0;
  bool first = true;
  while (true) {
    std::size_t end = all.find("\r\n", begin);
    if (end == begin) break;  // the blank line
    if (Status s = first ? (kind_ == HttpKind::kRequest ? parse_request_line(end) : parse_status_line(end))
                         : parse_header_line(begin, end);
        !s)
      return s;
    first = false;
    begin = end + 2;
  }
  if (first) return bad("it starts with an empty line");
  return check_framing();
}

Status HttpHeadParser::parse_request_line(std::size_t end) {
  std::string_view line = std::string_view(head_).substr(0, end);
  std::size_t a = line.find(' ');
  std::size_t b = line.rfind(' ');
  if (a == std::string_view::npos || a == b) return bad("request line");
  std::string_view version = line.substr(b + 1);
  if (version != "HTTP/1.1" && version != "HTTP/1.0") return bad("unknown version in the request line");
  minor_version_ = version.back() - '0';
  first_ = slice(0, a);
  second_ = slice(a + 1, b - a - 1);
  if (!is_token(method()) || !is_target(target())) return bad("request line");
  return {};
}

Status HttpHeadParser::parse_status_line(std::size_t end) {
  std::string_view line = std::string_view(head_).substr(0, end);
  if (line.size() < 12 || !(line.starts_with("HTTP/1.1 ") || line.starts_with("HTTP/1.0 "))) return bad("status line");
  minor_version_ = line[7] - '0';
  auto code = parse_length(line.substr(9, 3));
  if (!code || *code < 100 || *code > 599) return bad("status code");
  if (line.size() > 12 && line[12] != ' ') return bad("status line");
  status_ = static_cast<int>(*code);
  second_ = line.size() > 13 ? slice(13, line.size() - 13) : slice(12, 0);
  if (!is_value(reason())) return bad("status line");
  return {};
}

Status HttpHeadParser::parse_header_line(std::size_t begin, std::size_t end) {
  if (headers_.size() >= limits_.header_count_max) return Error{ErrorCode::kLimit, "the HTTP head has too many lines"};
  std::string_view line = std::string_view(head_).substr(begin, end - begin);
  std::size_t colon = line.find(':');
  if (colon == std::string_view::npos || !is_token(line.substr(0, colon))) return bad("header name");
  std::string_view value = trim(line.substr(colon + 1));
  if (!is_value(value)) return bad("header value");
  std::size_t offset = value.empty() ? begin + colon + 1 : static_cast<std::size_t>(value.data() - head_.data());
  headers_.push_back({slice(begin, colon), slice(offset, value.size())});
  return {};
}

Status HttpHeadParser::check_framing() {
  int hosts = 0;
  bool coding = false;
  for (const Line& line : headers_) {
    std::string_view name = view(line.name);
    std::string_view value = view(line.value);
    if (equal_ignore_case(name, "content-length")) {
      auto length = parse_length(value);
      if (!length) return bad("Content-Length");
      if (content_length_ && *content_length_ != *length) return bad("two different lengths");
      content_length_ = length;
    } else if (equal_ignore_case(name, "transfer-encoding")) {
      if (coding || !equal_ignore_case(value, "chunked")) return bad("Transfer-Encoding");
      coding = true;
    } else if (equal_ignore_case(name, "host")) {
      ++hosts;
    }
  }
  if (coding && (content_length_ || minor_version_ == 0)) return bad("two different lengths");
  if (kind_ == HttpKind::kRequest && hosts > 1) return bad("more than one Host");
  chunked_ = coding;
  return {};
}

HttpHeader HttpHeadParser::header_at(std::size_t index) const {
  PORTHOLE_ASSERT(index < headers_.size());
  return {view(headers_[index].name), view(headers_[index].value)};
}

std::string_view HttpHeadParser::path_and_query() const {
  std::string_view rest = target();
  const std::size_t scheme = rest.find("://");
  if (scheme == std::string_view::npos) return rest;
  if (!equal_ignore_case(rest.substr(0, scheme), "http") && !equal_ignore_case(rest.substr(0, scheme), "https")) return rest;
  rest.remove_prefix(scheme + 3);
  const std::size_t path = rest.find('/');
  return path == std::string_view::npos ? std::string_view("/") : rest.substr(path);
}

std::optional<std::string_view> HttpHeadParser::header(std::string_view name) const {
  for (const Line& line : headers_)
    if (equal_ignore_case(view(line.name), name)) return view(line.value);
  return std::nullopt;
}

bool HttpHeadParser::header_has_token(std::string_view name, std::string_view token) const {
  for (const Line& line : headers_) {
    if (!equal_ignore_case(view(line.name), name)) continue;
    std::string_view rest = view(line.value);
    while (true) {
      std::size_t comma = rest.find(',');
      if (equal_ignore_case(trim(rest.substr(0, comma)), token)) return true;
      if (comma == std::string_view::npos) break;
      rest.remove_prefix(comma + 1);
    }
  }
  return false;
}

HttpBody HttpHeadParser::body(bool answers_head_request) const {
  if (kind_ == HttpKind::kResponse && (answers_head_request || status_ < 200 || status_ == 204 || status_ == 304))
    return HttpBody::kNone;
  if (chunked_) return HttpBody::kChunked;
  if (content_length_) return HttpBody::kLength;
  return kind_ == HttpKind::kRequest ? HttpBody::kNone : HttpBody::kUntilClose;
}

bool HttpHeadParser::keep_alive() const {
  if (header_has_token("connection", "close")) return false;
  return minor_version_ == 1 || header_has_token("connection", "keep-alive");
}

HttpBodyReader::HttpBodyReader(HttpBody body, std::uint64_t content_length, std::size_t size_max) : size_max_(size_max) {
  switch (body) {
    case HttpBody::kNone: state_ = State::kDone; break;
    case HttpBody::kLength:
      state_ = content_length == 0 ? State::kDone : State::kData;
      left_ = content_length;
      break;
    case HttpBody::kChunked: state_ = State::kChunkSize; break;
    case HttpBody::kUntilClose: state_ = State::kUntilClose; break;
  }
}

Status HttpBodyReader::keep(Bytes bytes) {
  if (bytes.size() > size_max_ - text_.size()) return Error{ErrorCode::kLimit, "the HTTP body is larger than allowed"};
  text_.append(as_text(bytes));
  return {};
}

Result<std::size_t> HttpBodyReader::consume(Bytes in) {
  std::size_t n = 0;
  while (n < in.size() && state_ != State::kDone) {
    if (state_ == State::kData || state_ == State::kChunkData || state_ == State::kUntilClose) {
      std::size_t take = in.size() - n;
      if (state_ != State::kUntilClose && take > left_) take = static_cast<std::size_t>(left_);
      if (Status s = keep(in.subspan(n, take)); !s) return s.error();
      n += take;
      if (state_ == State::kUntilClose) continue;
      left_ -= take;
      if (left_ == 0) state_ = state_ == State::kData ? State::kDone : State::kChunkEnd;
    } else {
      if (Status s = chunk_byte(in[n]); !s) return s.error();
      ++n;
    }
  }
  return n;
}

// One byte outside of chunk data. Lines end with CR LF only.
Status HttpBodyReader::chunk_byte(std::uint8_t c) {
  if (++overhead_ > kHttpChunkOverheadMax || ++line_size_ > kHttpChunkLineMax) return bad("chunk framing is too long");
  if (cr_ != (c == '\n')) return bad("chunk line end");
  if (cr_) {
    cr_ = false;
    bool blank = line_size_ == 2;
    line_size_ = 0;
    if (state_ == State::kChunkEnd) {
      state_ = State::kChunkSize;
    } else if (state_ == State::kTrailer) {
      if (blank) state_ = State::kDone;
    } else {
      if (digits_ == 0) return bad("chunk size");
      digits_ = 0;
      state_ = left_ == 0 ? State::kTrailer : State::kChunkData;
    }
    return {};
  }
  if (c == '\r') {
    cr_ = true;
    return {};
  }
  switch (state_) {
    case State::kChunkSize: {
      int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
      if (digit >= 0) {
        if (++digits_ > kHttpChunkDigitsMax) return bad("chunk size");
        left_ = (digits_ == 1 ? 0 : left_ * 16) + static_cast<std::uint64_t>(digit);
        return {};
      }
      if (digits_ == 0 || (c != ';' && c != ' ' && c != '\t')) return bad("chunk size");
      state_ = State::kChunkExtension;
      return {};
    }
    case State::kChunkEnd: return bad("chunk data is longer than announced");
    default: return {};
  }
}

Status HttpBodyReader::end_of_stream() {
  if (state_ == State::kUntilClose) state_ = State::kDone;
  if (state_ == State::kDone) return {};
  return Error{ErrorCode::kProtocol, "the connection ended in the middle of an HTTP body"};
}

Result<std::size_t> HttpMessageParser::consume(Bytes in) {
  std::size_t n = 0;
  if (!head_.done()) {
    Result<std::size_t> taken = head_.consume(in);
    if (!taken) return taken;
    n = *taken;
    if (!head_.done()) return n;
    const HttpBody body = head_.body(answers_head_request_);
    if (body == HttpBody::kLength && head_.content_length() > limits_.body_size_max)
      return Error{ErrorCode::kLimit, "the HTTP body is larger than allowed"};  // before the sender waits, or sends it
    body_.emplace(body, head_.content_length(), limits_.body_size_max);
  }
  Result<std::size_t> taken = body_->consume(in.subspan(n));
  if (!taken) return taken;
  return n + *taken;
}

Status HttpMessageParser::end_of_stream() {
  if (!body_) return Error{ErrorCode::kProtocol, "the connection ended before the HTTP head was complete"};
  return body_->end_of_stream();
}

namespace {

Status append_headers(ByteVector& out, std::string_view first_line, std::span<const HttpHeader> headers) {
  for (const HttpHeader& h : headers)
    if (!is_token(h.name) || !is_value(h.value)) return Error{ErrorCode::kInvalid, "a header line holds a forbidden character"};
  append(out, as_bytes(first_line));
  for (const HttpHeader& h : headers)
    for (std::string_view part : {h.name, std::string_view(": "), h.value, std::string_view("\r\n")}) append(out, as_bytes(part));
  append(out, as_bytes("\r\n"));
  return {};
}

}  // namespace

Status encode_http_request_head(ByteVector& out, std::string_view method, std::string_view target,
                                std::span<const HttpHeader> headers) {
  if (!is_token(method) || !is_target(target)) return Error{ErrorCode::kInvalid, "the request line holds a forbidden character"};
  std::string line(method);
  line.append(" ").append(target).append(" HTTP/1.1\r\n");
  return append_headers(out, line, headers);
}

Status encode_http_response_head(ByteVector& out, int status, std::string_view reason, std::span<const HttpHeader> headers) {
  if (status < 100 || status > 599 || !is_value(reason)) return Error{ErrorCode::kInvalid, "the status line holds a forbidden character"};
  std::string line = "HTTP/1.1 " + std::to_string(status);
  line.append(" ").append(reason).append("\r\n");
  return append_headers(out, line, headers);
}

ByteVector http_text_response(int status, std::string_view reason, std::string_view text,
                              std::span<const HttpHeader> more_headers) {
  std::string length = std::to_string(text.size());
  std::vector<HttpHeader> headers = {{"Content-Type", "text/plain; charset=utf-8"}, {"Content-Length", length}, {"Connection", "close"}};
  headers.insert(headers.end(), more_headers.begin(), more_headers.end());
  ByteVector out;
  Status s = encode_http_response_head(out, status, reason, headers);
  PORTHOLE_ASSERT(s.ok());
  append(out, as_bytes(text));
  return out;
}

}  // namespace porthole::wire
