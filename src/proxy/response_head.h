// The head of a server's answer to a plain request, on its way back through the proxy: the connection ends with this
// answer, and the client must know. Servers may close without saying so (RFC 9112 section 9.6 only asks for it), and a
// client that takes the connection for a lasting one would send its next request into nothing, or to the wrong server.
//
// Interim answers (100 Continue) pass as they are, 101 Switching Protocols ends it. What is no HTTP answer passes as it
// is, too: the client shall see what the server said.
#pragma once

#include "base/bytes.h"
#include "proxy/limits.h"
#include "wire/http.h"

namespace porthole::proxy {

class ResponseHead {
 public:
  ResponseHead();
  // Takes bytes of the server and returns how many: never one behind the head.
  std::size_t consume(Bytes in);
  // The server sends no more: what was held back goes out.
  void end();
  // All the rest passes through, behind output().
  bool done() const { return done_; }
  Bytes output() const { return Bytes(out_).subspan(sent_); }
  void sent(std::size_t size);

 private:
  void finish_head();
  void give_up();

  wire::HttpHeadParser head_;
  ByteVector raw_;     // of the head being read
  ByteVector out_;
  std::size_t sent_ = 0;
  bool done_ = false;
};

}  // namespace porthole::proxy
