#include "sim/trace.h"

#include <algorithm>
#include <cstdio>

namespace porthole::sim {
namespace {
// Of each datagram: with encrypted contents any difference shows in its first bytes.
constexpr std::size_t kDigestedBytes = 64;
}  // namespace

Trace::Line& Trace::Ring::put(std::size_t kept) {
  if (lines.size() < kept) return lines.emplace_back();
  Line& line = lines[next];
  next = (next + 1) % kept;
  return line;
}

void Trace::mix(std::uint64_t value) {
  digest_ ^= value + 0x9e3779b97f4a7c15 + (digest_ << 6) + (digest_ >> 2);
  digest_ *= 0xff51afd7ed558ccd;
  digest_ ^= digest_ >> 32;
}

void Trace::note(Instant at, std::string_view who, std::string_view what) {
  Line& line = notes_.put(kNotesKept);
  line.at = at;
  line.text.assign(who);
  line.text += ": ";
  line.text += what;
  mix(static_cast<std::uint64_t>(at.ns()));
  mix(hash_bytes(as_bytes(line.text)));
}

void Trace::datagram(Instant at, const char* verdict, const Endpoint& source, const Endpoint& destination, Bytes data) {
  Line& line = datagrams_.put(kDatagramsKept);
  line.at = at;
  line.verdict = verdict;
  line.source = source;
  line.destination = destination;
  line.size = data.size();
  mix(static_cast<std::uint64_t>(at.ns()));
  mix(hash_bytes(data.first(std::min(data.size(), kDigestedBytes))) + data.size());
}

std::string Trace::text(Instant origin) const {
  std::vector<const Line*> all;
  for (const Ring* ring : {&notes_, &datagrams_})
    for (std::size_t i = 0; i < ring->lines.size(); ++i)
      all.push_back(&ring->lines[(ring->next + i) % ring->lines.size()]);
  std::stable_sort(all.begin(), all.end(), [](const Line* a, const Line* b) { return a->at < b->at; });
  std::string out;
  for (const Line* line : all) {
    char time[32];
    std::snprintf(time, sizeof time, "%12.6f ", static_cast<double>((line->at - origin).count()) / 1e9);
    out += time;
    if (line->verdict)
      out += "udp " + line->source.to_string() + " > " + line->destination.to_string() + " " + std::to_string(line->size) +
             " B " + line->verdict;
    else
      out += line->text;
    out += '\n';
  }
  return out;
}

}  // namespace porthole::sim
