// HTTP/1.1 message heads and small bodies (RFC 9110, RFC 9112), incremental and strict.
//
// Used where HTTP is only the door to another protocol (relay and control upgrades, proxy CONNECT) or carries a small
// document (key fetch, latency check). Input may come in slices of any size; bytes behind a message are never
// consumed, so an upgraded protocol starts with exactly the rest.
//
// Strict on purpose, because two readers of one message must agree where it ends: CRLF line ends only, no folded lines,
// no space before the colon, one body length (RFC 9112 section 6.3), no transfer coding but "chunked".
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"

namespace porthole::wire {

struct HttpLimits {
  // Whole head with all line ends. Browsers and Go clients send below 2 KiB; 8 KiB is the common server default.
  std::size_t head_size_max = 8 * 1024;
  // Header lines; the longest real head seen (a browser behind two proxies) has about 30.
  std::size_t header_count_max = 64;
  // Decoded body kept in memory. Relay error texts are capped at 4 KiB, key documents are below 1 KiB.
  std::size_t body_size_max = 64 * 1024;
};

struct HttpHeader {
  std::string_view name;
  std::string_view value;
};

enum class HttpKind { kRequest, kResponse };

// How the end of a body is found.
enum class HttpBody { kNone, kLength, kChunked, kUntilClose };

// Reads one head. Owns the head's bytes; the views it returns live as long as the parser is neither moved, reset nor
// destroyed.
class HttpHeadParser {
 public:
  explicit HttpHeadParser(HttpKind kind, const HttpLimits& limits = {});

  // Takes bytes up to the end of the head and returns how many it took: all of `in` until the head is complete, never
  // a byte behind it. After an error the parser must not be fed again.
  Result<std::size_t> consume(Bytes in);
  bool done() const { return done_; }

  // The rest is valid only once done().
  std::string_view method() const { return view(first_); }     // request; case kept ("GET")
  std::string_view target() const { return view(second_); }    // request: "/derp", "host:443", "http://host/x"
  // For an origin server: the target from its path on. Clients may send the whole URL to it (RFC 9112 section 3.2.2).
  std::string_view path_and_query() const;
  int status() const { return status_; }                       // response: 100..599
  std::string_view reason() const { return view(second_); }    // response; may be empty
  int minor_version() const { return minor_version_; }         // HTTP/1.0 or 1.1

  // First header of that name, letter case ignored; nullopt when absent. Surrounding blanks are gone.
  std::optional<std::string_view> header(std::string_view name) const;
  // True when a comma-separated header (possibly repeated) holds `token`, letter case ignored: Connection, Upgrade.
  bool header_has_token(std::string_view name, std::string_view token) const;
  std::size_t header_count() const { return headers_.size(); }
  HttpHeader header_at(std::size_t index) const;

  // Requests without length have no body; responses without length run until close, except 1xx, 204, 304 and answers
  // to HEAD. Answers to CONNECT with 2xx have none either, which the caller knows.
  HttpBody body(bool answers_head_request = false) const;
  std::uint64_t content_length() const { return content_length_.value_or(0); }
  // Whether the connection may carry another message (RFC 9112 section 9.3).
  bool keep_alive() const;

 private:
  struct Slice {
    std::uint32_t offset = 0;
    std::uint32_t size = 0;
  };
  struct Line {
    Slice name, value;
  };
  std::string_view view(Slice s) const { return std::string_view(head_).substr(s.offset, s.size); }
  Slice slice(std::size_t offset, std::size_t size) const {
    return {static_cast<std::uint32_t>(offset), static_cast<std::uint32_t>(size)};
  }
  Status parse();
  Status parse_request_line(std::size_t end);
  Status parse_status_line(std::size_t end);
  Status parse_header_line(std::size_t begin, std::size_t end);
  Status check_framing();

  HttpKind kind_;
  HttpLimits limits_;
  std::string head_;
  std::vector<Line> headers_;
  Slice first_, second_;
  int status_ = 0;
  int minor_version_ = 1;
  std::optional<std::uint64_t> content_length_;
  bool chunked_ = false;
  int end_match_ = 0;  // how much of CR LF CR LF was seen
  bool done_ = false;
};

// Collects a small body. Chunk extensions and trailers are read over.
class HttpBodyReader {
 public:
  HttpBodyReader(HttpBody body, std::uint64_t content_length, std::size_t size_max);

  // Returns how many bytes belonged to the body. kLimit when it grows beyond size_max.
  Result<std::size_t> consume(Bytes in);
  bool done() const { return state_ == State::kDone; }
  // The stream ended: completes an until-close body, fails for one that is cut short.
  Status end_of_stream();
  const std::string& text() const { return text_; }
  std::string take_text() { return std::move(text_); }

 private:
  enum class State { kData, kChunkSize, kChunkExtension, kChunkData, kChunkEnd, kTrailer, kUntilClose, kDone };
  Status keep(Bytes bytes);
  Status chunk_byte(std::uint8_t c);

  State state_;
  std::size_t size_max_;
  std::uint64_t left_ = 0;     // bytes left of the body or of the chunk
  int digits_ = 0;             // of the chunk size line
  std::size_t line_size_ = 0;  // bytes of the current size or trailer line
  std::size_t overhead_ = 0;   // bytes of all extensions and trailers
  bool cr_ = false;
  std::string text_;
};

// Head and small body in one.
class HttpMessageParser {
 public:
  // `answers_head_request`: the body is absent whatever the head says.
  explicit HttpMessageParser(HttpKind kind, const HttpLimits& limits = {}, bool answers_head_request = false)
      : limits_(limits), head_(kind, limits), answers_head_request_(answers_head_request) {}

  Result<std::size_t> consume(Bytes in);
  bool done() const { return body_ && body_->done(); }
  Status end_of_stream();
  const HttpHeadParser& head() const { return head_; }
  bool head_done() const { return head_.done(); }
  // What came of the body so far.
  std::string_view body() const { return body_ ? std::string_view(body_->text()) : std::string_view(); }

 private:
  HttpLimits limits_;
  HttpHeadParser head_;
  bool answers_head_request_;
  std::optional<HttpBodyReader> body_;
};

// Appends "METHOD target HTTP/1.1", the headers in order and the blank line. kInvalid, with `out` unchanged, when a part
// holds a line break or another byte that would change the meaning of the message.
Status encode_http_request_head(ByteVector& out, std::string_view method, std::string_view target,
                                std::span<const HttpHeader> headers);
Status encode_http_response_head(ByteVector& out, int status, std::string_view reason,
                                 std::span<const HttpHeader> headers);
// A whole answer with Content-Length, Content-Type text/plain and "Connection: close".
ByteVector http_text_response(int status, std::string_view reason, std::string_view text,
                              std::span<const HttpHeader> more_headers = {});

// ASCII letter case ignored.
bool equal_ignore_case(std::string_view a, std::string_view b);

}  // namespace porthole::wire
