#include "proxy/response_head.h"

#include <vector>

namespace porthole::proxy {
namespace {

wire::HttpLimits response_limits() {
  wire::HttpLimits limits;
  limits.head_size_max = kHttpHeadSizeMax;
  return limits;
}

}  // namespace

ResponseHead::ResponseHead() : head_(wire::HttpKind::kResponse, response_limits()) {}

std::size_t ResponseHead::consume(Bytes in) {
  if (done_) return 0;
  Result<std::size_t> taken = head_.consume(in);
  append(raw_, taken ? in.first(*taken) : in);
  if (!taken) give_up();
  else if (head_.done()) finish_head();
  return taken ? *taken : in.size();
}

void ResponseHead::end() {
  if (!done_) give_up();
}

void ResponseHead::finish_head() {
  int status = head_.status();
  if (status == 101) return give_up();
  if (status < 200) {
    append(out_, raw_);
    raw_.clear();
    head_ = wire::HttpHeadParser(wire::HttpKind::kResponse, response_limits());
    return;
  }
  std::vector<wire::HttpHeader> headers;
  for (std::size_t i = 0; i < head_.header_count(); ++i) {
    wire::HttpHeader h = head_.header_at(i);
    if (!wire::equal_ignore_case(h.name, "connection") && !wire::equal_ignore_case(h.name, "keep-alive") &&
        !wire::equal_ignore_case(h.name, "proxy-connection"))
      headers.push_back(h);
  }
  headers.push_back({"Connection", "close"});
  if (!wire::encode_http_response_head(out_, status, head_.reason(), headers)) return give_up();
  raw_.clear();
  done_ = true;
}

void ResponseHead::give_up() {
  append(out_, raw_);
  raw_.clear();
  done_ = true;
}

void ResponseHead::sent(std::size_t size) {
  sent_ += size;
  if (sent_ < out_.size()) return;
  out_.clear();
  sent_ = 0;
}

}  // namespace porthole::proxy
