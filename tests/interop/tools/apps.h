// What runs on the netstack's connections: echo, give, take. Each hashes what it sends and receives.
#pragma once

#include <openssl/evp.h>

#include <cstdlib>
#include <memory>
#include <string>

#include "line.h"
#include "netstack/stack.h"

namespace porthole::interop {

using netstack::SocketEvent;
using netstack::SocketEventKind;
using netstack::SocketId;
using netstack::Stack;

class Sha256 {
 public:
  Sha256() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) { EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr); }
  void add(Bytes b) { EVP_DigestUpdate(context_.get(), b.data(), b.size()); }
  std::string hex() const {
    std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> copy(EVP_MD_CTX_new(), EVP_MD_CTX_free);
    EVP_MD_CTX_copy_ex(copy.get(), context_.get());
    std::uint8_t out[32];
    EVP_DigestFinal_ex(copy.get(), out, nullptr);
    return to_hex(Bytes(out));
  }

 private:
  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

// echo          sends back what it gets, and FIN after FIN
// give BYTES    sends a pattern of that many bytes, then FIN; what comes meanwhile is counted
//               chunk=N gap=US: writes of N bytes, so far apart;  seconds=S: ends after this time
// take          receives up to FIN, answers with "BYTES SHA256\n" and FIN
// hold          does nothing
class App {
 public:
  App(Stack& stack, SocketId id, const Command& command, std::size_t role_at)
      : stack_(stack), id_(id), role_(command.word(role_at)), to_give_(command.number(role_at + 1)),
        chunk_(std::min<std::size_t>(command.number("chunk", kBlock), kBlock)),
        gap_(std::chrono::microseconds(command.number("gap", 0))), seconds_(command.number("seconds", 0)),
        pattern_(kBlock) {
    SeededRng(command.number("seed", 1)).fill(pattern_);
    paused_ = role_ == "hold" || command.has("paused");
  }
  SocketId id() const { return id_; }
  const std::string& role() const { return role_; }
  bool over() const { return over_; }
  Instant next() const { return next_write_; }
  std::uint64_t received() const { return received_; }
  void pause(bool on) { paused_ = on; }

  void handle(Instant now, const SocketEvent& e) {
    switch (e.kind) {
      case SocketEventKind::kConnected:
        Line("connected").add("id", id_).add("local", stack_.local(id_).to_string());
        start(now);
        break;
      case SocketEventKind::kConnectFailed:
      case SocketEventKind::kReset:
        Line(e.kind == SocketEventKind::kReset ? "reset" : "failed").add("id", id_).add("error", e.error.message)
            .add("received", received_).add("sent", sent_);
        finish(now);
        return;
      case SocketEventKind::kPeerClosed: Line("peer_closed").add("id", id_); break;
      case SocketEventKind::kClosed: closed_ = true; break;
      default: break;
    }
    pump(now);
  }
  void start(Instant now) {
    running_ = true;
    started_ = now;
  }
  void pump(Instant now) {
    if (!running_ || over_) return;
    if (!paused_) read(now);
    write(now);
    if (closed_ && stack_.readable(id_) == 0) {
      Line("done").add("id", id_).add("role", role_).add("received", received_).add("received_sha256", received_hash_.hex())
          .add("sent", sent_).add("sent_sha256", sent_hash_.hex()).add("took", now - started_);
      finish(now);
    }
  }

 private:
  static constexpr std::size_t kBlock = 64 * 1024;
  static constexpr std::size_t kEchoMax = 1 << 20;

  void finish(Instant now) {
    over_ = true;
    next_write_ = Instant::max();
    stack_.close(now, id_);
  }
  void read(Instant now) {
    Bytes spans[64];
    for (std::size_t n; pending_.size() < kEchoMax && (n = stack_.peek(id_, spans)) > 0;) {
      std::size_t size = 0;
      for (std::size_t i = 0; i < n; ++i) {
        received_hash_.add(spans[i]);
        size += spans[i].size();
        if (role_ == "echo") append(pending_, spans[i]);
      }
      stack_.consume(now, id_, size);
      received_ += size;
    }
    if (eof_ || !stack_.read_eof(id_)) return;
    eof_ = true;
    if (role_ == "take") {
      std::string line = std::to_string(received_) + " " + received_hash_.hex() + "\n";
      append(pending_, as_bytes(line));
    }
  }
  void write(Instant now) {
    while (!pending_.empty()) {
      std::size_t n = stack_.write(now, id_, pending_);
      sent_hash_.add(Bytes(pending_).first(n));
      sent_ += n;
      pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(n));
      if (n == 0) return;
      if (!paused_) read(now);
    }
    if (role_ == "give") {
      if (seconds_ > 0 && now - started_ > std::chrono::seconds(seconds_)) to_give_ = sent_;
      while (sent_ < to_give_) {
        if (now < next_write_ && next_write_ != Instant::max()) return;
        std::size_t at = sent_ % kBlock;
        if (at == 0) store_le(pattern_.data(), sent_);
        std::size_t want = std::min({chunk_, kBlock - at, static_cast<std::size_t>(to_give_ - sent_)});
        Bytes piece = Bytes(pattern_).subspan(at, want);
        std::size_t n = stack_.write(now, id_, piece);
        sent_hash_.add(piece.first(n));
        sent_ += n;
        if (gap_ > Duration(0)) next_write_ = now + gap_;
        if (n < want) return;
      }
      next_write_ = Instant::max();
    }
    if (!fin_ && (role_ == "give" || (eof_ && role_ != "hold"))) {
      fin_ = true;
      stack_.shutdown_write(now, id_);
    }
  }

  Stack& stack_;
  SocketId id_;
  std::string role_;
  std::uint64_t to_give_, sent_ = 0, received_ = 0;
  std::size_t chunk_;
  Duration gap_;
  std::uint64_t seconds_;
  ByteVector pattern_, pending_;
  Sha256 received_hash_, sent_hash_;
  bool running_ = false, paused_ = false, eof_ = false, fin_ = false, closed_ = false, over_ = false;
  Instant started_, next_write_ = Instant::max();
};

}  // namespace porthole::interop
