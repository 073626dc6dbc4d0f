#include "remote/state_dir.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "coordinator/auth_keys.h"
#include "remote/clock.h"
#include "support/support.h"

namespace porthole::remote {

StateDir::StateDir(const std::string& path, bool* in_use) : path_(path) {
  app::ensure_state_dir(path);
  std::string lock = file("lock");
  lock_fd_ = ::open(lock.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (lock_fd_ < 0) throw app::CommandError("cannot write " + lock + ": " + std::strerror(errno));
  // A command of the command line holds the lock for a moment only: a service that starts waits that long.
  constexpr int kTries = 10;
  constexpr useconds_t kPause = 50'000;
  for (int i = 0; i < (in_use ? 1 : kTries); ++i) {
    if (i > 0) ::usleep(kPause);
    if (::flock(lock_fd_, LOCK_EX | LOCK_NB) == 0) return;
  }
  ::close(lock_fd_);
  lock_fd_ = -1;
  if (!in_use) throw app::CommandError("state directory " + path + " is in use by another porthole remote; stop it first");
  *in_use = true;
}

StateDir::~StateDir() {
  if (lock_fd_ >= 0) ::close(lock_fd_);
}

bool StateDir::is_headscale() const { return ::access(file("engine").c_str(), F_OK) == 0; }

void StateDir::claim_engine(bool headscale) {
  if (is_headscale() == headscale) return;
  if (!headscale)
    throw app::CommandError("state directory " + path_ + " belongs to a service with --engine headscale-api; choose another one");
  if (::access(store_path().c_str(), F_OK) == 0)
    throw app::CommandError("state directory " + path_ + " belongs to a service with the embedded coordinator; choose another one "
                            "for --engine headscale-api");
  app::write_file_atomic(file("engine"), "headscale-api\n");
}

void StateDir::check_store() const {
  struct stat info {};
  if (::stat(store_path().c_str(), &info) == 0 && info.st_size > 0) return;
  // These two are made after the store, so one that was killed at its first start is no such case.
  for (const char* key : {"server.secret", "noise.key"})
    if (::access(file(key).c_str(), F_OK) == 0)
      throw app::CommandError("the store " + store_path() + " is missing or empty, although " + key + " says that there was one: restore " +
                              "it from a backup; for a new service, take an empty directory");
}

crypto::SecretText StateDir::load_or_create(const std::string& name, const crypto::SecretText& fresh, bool needed) {
  std::string path = file(name);
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) {
    if (errno != ENOENT) throw app::CommandError("cannot read " + path + ": " + std::strerror(errno));
    if (needed) throw app::CommandError(path + " is missing, and what the store holds depends on it: restore it from a backup");
    app::write_file_atomic(path, std::string(fresh.reveal()) + "\n", 0600);
    return fresh.duplicate();
  }
  std::string text = app::read_file(path);
  while (!text.empty() && (text.back() == '\n' || text.back() == '\r' || text.back() == ' ')) text.pop_back();
  crypto::SecretText out(text);
  crypto::wipe(MutBytes(reinterpret_cast<std::uint8_t*>(text.data()), text.size()));
  return out;
}

crypto::MachinePrivate StateDir::noise_key(bool needed) {
  SystemRng rng;
  auto text = load_or_create("noise.key", crypto::MachinePrivate::generate(rng).to_text(), needed);
  auto key = crypto::MachinePrivate::parse(text.reveal());
  if (!key) throw app::CommandError(file("noise.key") + " does not hold a key; restore it from a backup");
  return std::move(*key);
}

crypto::NodePrivate StateDir::relay_key() {
  SystemRng rng;
  auto text = load_or_create("relay.key", crypto::NodePrivate::generate(rng).to_text());
  auto key = crypto::NodePrivate::parse(text.reveal());
  if (!key) throw app::CommandError(file("relay.key") + " does not hold a key; restore it from a backup");
  return std::move(*key);
}

crypto::SecretBytes<32> StateDir::server_secret(bool needed) {
  crypto::SecretText text = load_or_create("server.secret", crypto::SecretText(app::random_hex(32)), needed);
  crypto::SecretBytes<32> out;
  if (!from_hex_exact(text.reveal(), out.writable()))
    throw app::CommandError(file("server.secret") + " does not hold 64 hexadecimal digits; restore it from a backup");
  return out;
}

crypto::SecretText StateDir::admin_token() {
  SystemRng rng;
  // "admin" cannot be mistaken for an account: the enrolment API compares the whole text with this file first.
  crypto::SecretText token = load_or_create("admin-token", coordinator::issue_token("admin", rng).text);
  if (!coordinator::parse_token(token.reveal()))
    throw app::CommandError(file("admin-token") + " does not hold a token; delete it to get a new one");
  return token;
}

}  // namespace porthole::remote
