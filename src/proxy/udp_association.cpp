#include "proxy/udp_association.h"

#include <algorithm>

#include "proxy/limits.h"

namespace porthole::proxy {

namespace socks = wire::socks5;

void UdpAssociation::handle_client(Instant now, const Endpoint& source, Bytes datagram) {
  if (source.address != client_.address || (client_.port != 0 && source.port != client_.port)) {
    ++counters_.other_client;
    return;
  }
  auto d = socks::parse_datagram(datagram);
  if (!d || d->port == 0) {
    ++counters_.bad_head;
    return;
  }
  if (d->fragment != 0) {
    ++counters_.fragment;
    return;
  }
  client_.port = source.port;
  auto to = host_.locate(d->host, d->port);
  if (!to) {
    ++counters_.unknown_target;
    return;
  }
  Flow* flow = find_or_open(now, d->target);
  if (!flow) {
    ++counters_.no_flow;
    return;
  }
  flow->to = *to;
  Status s = host_.send_to_target(flow->id, *to, d->data);
  if (s) ++counters_.from_client;
  else if (s.error().code == ErrorCode::kLimit) ++counters_.too_long;
  else if (s.error().code == ErrorCode::kUnavailable) ++counters_.way_full;
  else ++counters_.unknown_target;
}

void UdpAssociation::handle_target(Instant now, FlowId id, const Endpoint& source, Bytes data) {
  auto flow = std::find_if(flows_.begin(), flows_.end(), [&](const Flow& f) { return f.id == id; });
  if (flow == flows_.end() || source != flow->to) {
    ++counters_.other_source;
    return;
  }
  touch(now, flow);
  ByteVector head;
  socks::encode_datagram_head(head, flow->target);
  ++(host_.send_to_client(client_, head, data) ? counters_.to_client : counters_.way_full);
}

UdpAssociation::Flow* UdpAssociation::find_or_open(Instant now, Bytes target) {
  // At most kUdpTargetsMax, and a busy one is found at the end.
  auto known = std::find_if(flows_.rbegin(), flows_.rend(), [&](const Flow& f) { return equal(f.target, target); });
  if (known != flows_.rend()) {
    touch(now, std::prev(known.base()));
    return &flows_.back();
  }
  if (flows_.size() >= kUdpTargetsMax) close_quietest();
  auto id = host_.open_flow();
  if (!id) return nullptr;
  flows_.push_back({*id, to_vector(target), {}, now});
  return &flows_.back();
}

void UdpAssociation::touch(Instant now, Flows::iterator flow) {
  flow->used = now;
  flows_.splice(flows_.end(), flows_, flow);
}

void UdpAssociation::close_quietest() {
  FlowId id = flows_.front().id;
  flows_.pop_front();
  host_.close_flow(id);
}

Deadline UdpAssociation::next_timeout() const {
  return flows_.empty() ? Deadline::never() : Deadline::at(flows_.front().used + kUdpTargetIdle);
}

void UdpAssociation::handle_timeout(Instant now) {
  while (!flows_.empty() && flows_.front().used + kUdpTargetIdle <= now) close_quietest();
}

void UdpAssociation::close() {
  while (!flows_.empty()) close_quietest();
}

}  // namespace porthole::proxy
