#include "derp/latency_probe.h"

#include <algorithm>

#include "derp/dial.h"
#include "derp/limits.h"

namespace porthole::derp {

void LatencyProbe::set_map(const ts2021::RelayMap& map) {
  clear();
  map_ = map;
}

void LatencyProbe::clear() {
  for (const auto& [id, probe] : probes_) actions_.push_back(CloseStream{id});
  probes_.clear();
  results_.clear();
}

void LatencyProbe::start(Instant now, std::span<const int> regions) {
  clear();
  end_ = now + kLatencyProbeTime;
  for (int region : regions) {
    if (probes_.size() >= kLatencyProbesMax) {
      results_.push_back({region, std::nullopt, {}});
      continue;
    }
    Probe probe;
    probe.region = region;
    dial(now, std::move(probe));
  }
}

// The node of the probe, or the first behind it that can be dialled.
void LatencyProbe::dial(Instant now, Probe probe) {
  auto region = map_.regions.find(probe.region);
  for (; region != map_.regions.end() && probe.node < region->second.nodes.size() && now < end_; ++probe.node) {
    std::optional<OpenStream> open = relay_stream(region->second.nodes[probe.node], plain_http_);
    if (!open) continue;
    open->id = next_stream_id_++;
    open->purpose = "relay latency";
    probe.host_header = host_header(*open);
    probe.deadline = std::min(end_, now + kLatencyProbeNodeTime);
    probes_.emplace(open->id, std::move(probe));
    actions_.push_back(std::move(*open));
    return;
  }
  results_.push_back({probe.region, std::nullopt, {}});
}

void LatencyProbe::next_node(Instant now, Probes::iterator it, bool close_stream) {
  if (close_stream) actions_.push_back(CloseStream{it->first});
  Probe next;
  next.region = it->second.region;
  next.node = it->second.node + 1;
  probes_.erase(it);
  dial(now, std::move(next));
}

std::optional<MeasuredLatency> LatencyProbe::poll_result() {
  if (results_.empty()) return std::nullopt;
  MeasuredLatency result = results_.front();
  results_.pop_front();
  return result;
}

std::optional<StreamAction> LatencyProbe::poll_action() {
  if (actions_.empty()) return std::nullopt;
  StreamAction action = std::move(actions_.front());
  actions_.pop_front();
  return action;
}

void LatencyProbe::stream_opened(Instant now, StreamId id, const StreamInfo& info) {
  auto it = probes_.find(id);
  if (it == probes_.end() || it->second.answer) return;
  Probe& probe = it->second;
  probe.remote = info.remote.address;
  wire::HttpLimits limits;
  limits.body_size_max = kHttpErrorBodyMax;
  probe.answer.emplace(wire::HttpKind::kResponse, limits);
  const wire::HttpHeader headers[] = {{"Host", probe.host_header}, {"User-Agent", "porthole"}, {"Connection", "close"}};
  if (!wire::encode_http_request_head(probe.request.end(), "GET", "/derp/latency-check", headers)) next_node(now, it, true);
}

void LatencyProbe::stream_failed(Instant now, StreamId id) {
  if (auto it = probes_.find(id); it != probes_.end()) next_node(now, it, false);
}

void LatencyProbe::stream_closed(Instant now, StreamId id) { stream_failed(now, id); }

Result<std::size_t> LatencyProbe::consume(Instant now, StreamId id, MutBytes bytes) {
  auto it = probes_.find(id);
  if (it == probes_.end() || !it->second.answer) return bytes.size();
  Probe& probe = it->second;
  // Its head is enough: the body is empty, and when it ends depends on how the connection is closed.
  const bool good = probe.answer->consume(bytes).ok() && probe.asked;
  if (good && !probe.answer->head_done()) return bytes.size();
  // Anything but a plain success is somebody who answers in the relay's place.
  if (!good || probe.answer->head().status() < 200 || probe.answer->head().status() > 299) {
    next_node(now, it, true);
    return bytes.size();
  }
  results_.push_back({probe.region, now - *probe.asked, probe.remote});
  actions_.push_back(CloseStream{id});
  probes_.erase(it);
  return bytes.size();
}

std::size_t LatencyProbe::produce(Instant now, StreamId id, MutBytes out) {
  auto it = probes_.find(id);
  if (it == probes_.end() || it->second.request.empty()) return 0;
  Probe& probe = it->second;
  if (!probe.asked) probe.asked = now;
  return probe.request.take(out);
}

bool LatencyProbe::has_output(StreamId id) const {
  auto it = probes_.find(id);
  return it != probes_.end() && !it->second.request.empty();
}

void LatencyProbe::handle_timeout(Instant now) {
  std::vector<StreamId> late;
  for (const auto& [id, probe] : probes_)
    if (now >= probe.deadline) late.push_back(id);
  for (StreamId id : late) next_node(now, probes_.find(id), true);
}

Deadline LatencyProbe::next_timeout() const {
  Deadline d = Deadline::never();
  for (const auto& [id, probe] : probes_) d = sooner(d, Deadline::at(probe.deadline));
  return d;
}

}  // namespace porthole::derp
