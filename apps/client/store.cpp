#include "client/store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cerrno>
#include <cstring>

#include "client/error.h"
#include "client/limits.h"
#include "session/names.h"
#include "support/support.h"

namespace porthole::client {
namespace {

using boost::json::object;

struct Field {
  const char* key;
  std::string SavedServer::*member;
};
constexpr Field kFields[] = {
    {"id", &SavedServer::id},
    {"name", &SavedServer::name},
    {"hostname", &SavedServer::hostname},
    {"password", &SavedServer::password},
    {"pin", &SavedServer::pin},
    {"remote_hostname", &SavedServer::remote_hostname},
    {"remote_ip", &SavedServer::remote_ip},
    {"coordination_url", &SavedServer::coordination_url},
    {"tailnet_preauth_key", &SavedServer::tailnet_preauth_key},
    {"tailnet_profile", &SavedServer::tailnet_profile},
};

bool exists(const std::string& path) {
  struct stat s {};
  if (::stat(path.c_str(), &s) == 0) return true;
  if (errno == ENOENT) return false;
  throw ClientError(Failure::kFailed, "cannot read " + path + ": " + std::strerror(errno));
}

[[noreturn]] void damaged(const std::string& path) {
  throw ClientError(Failure::kFailed, path + " is damaged and was left as it is; restore it, or move it away to start afresh");
}

// The object in the file, after a look at its version.
object load(const std::string& path) {
  struct stat s {};
  if (::stat(path.c_str(), &s) == 0 && static_cast<std::size_t>(s.st_size) > kStoreBytesMax) damaged(path);
  boost::system::error_code error;
  boost::json::value value = boost::json::parse(app::read_file(path), error);
  if (error || !value.is_object()) damaged(path);
  object& out = value.as_object();
  const boost::json::value* version = out.if_contains("version");
  if (!version || !version->is_int64()) damaged(path);
  if (version->as_int64() > 1)
    throw ClientError(Failure::kFailed, path + " was written by a newer version of porthole; update this one");
  return std::move(out);
}

// Held while one process changes the files of the directory.
class Lock {
 public:
  explicit Lock(const std::string& dir) : fd_(::open((dir + "/lock").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600)) {
    if (fd_ < 0 || ::flock(fd_, LOCK_EX) != 0)
      throw ClientError(Failure::kFailed, "cannot lock the state directory " + dir + ": " + std::strerror(errno));
  }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;
  ~Lock() {
    if (fd_ >= 0) ::close(fd_);
  }

 private:
  int fd_;
};

std::string lower(std::string text) {
  for (char& c : text)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return text;
}

}  // namespace

Store::Store(std::string dir) : dir_(std::move(dir)) { app::ensure_state_dir(dir_); }

std::vector<SavedServer> Store::servers() const {
  std::vector<SavedServer> out;
  if (!exists(file())) return out;
  object stored = load(file());
  const boost::json::value* list = stored.if_contains("servers");
  if (!list || !list->is_array()) damaged(file());
  for (const boost::json::value& v : list->as_array()) {
    if (!v.is_object() || out.size() >= kServersMax) damaged(file());
    SavedServer server;
    for (const Field& field : kFields) {
      const boost::json::value* text = v.as_object().if_contains(field.key);
      if (!text) continue;
      if (!text->is_string()) damaged(file());
      server.*field.member = std::string(text->as_string());
    }
    if (server.id.empty() || server.name.empty()) damaged(file());
    out.push_back(std::move(server));
  }
  return out;
}

void Store::update(const std::function<void(std::vector<SavedServer>&)>& change) {
  Lock lock(dir_);
  std::vector<SavedServer> list = servers();
  change(list);
  if (list.size() > kServersMax) throw ClientError(Failure::kFailed, "too many saved servers; remove one first");
  boost::json::array stored;
  for (const SavedServer& server : list) {
    object o;
    for (const Field& field : kFields)
      if (!(server.*field.member).empty()) o[field.key] = server.*field.member;
    stored.push_back(std::move(o));
  }
  object whole{{"version", 1}, {"servers", std::move(stored)}};
  app::write_file_atomic(file(), boost::json::serialize(whole) + "\n", 0600);
}

SavedServer Store::find(const std::string& what) const {
  std::vector<SavedServer> list = servers();
  std::string wanted = lower(what);
  std::vector<const SavedServer*> exact, begins;
  for (const SavedServer& s : list) {
    if (s.id == wanted || lower(s.name) == wanted || (!s.hostname.empty() && lower(s.hostname) == wanted))
      exact.push_back(&s);
    else if (s.id.starts_with(wanted) || lower(s.name).starts_with(wanted))
      begins.push_back(&s);
  }
  const auto& found = exact.empty() ? begins : exact;
  if (found.size() == 1) return *found.front();
  if (found.empty())
    throw ClientError(Failure::kNotFound, "there is no saved server \"" + what + "\" (see \"porthole client servers\")");
  throw ClientError(Failure::kNotFound, "\"" + what + "\" fits several saved servers; use the id from \"porthole client servers\"");
}

Store::Device Store::device(const std::string& name) {
  std::string path = dir_ + "/device.json";
  Lock lock(dir_);
  Device out;
  if (exists(path)) {
    object stored = load(path);
    const boost::json::value* id = stored.if_contains("device_id");
    const boost::json::value* known = stored.if_contains("device_name");
    if (!id || !id->is_string() || id->as_string().size() != 36 || !known || !known->is_string()) damaged(path);
    out = {std::string(id->as_string()), std::string(known->as_string())};
    if (name.empty() || name == out.name) return out;
    out.name = session::clean_text(name, kDeviceNameBytesMax);
  } else {
    out = {app::random_uuid(), name.empty() ? session::machine_name() : session::clean_text(name, kDeviceNameBytesMax)};
  }
  object stored{{"version", 1}, {"device_id", out.id}, {"device_name", out.name}};
  app::write_file_atomic(path, boost::json::serialize(stored) + "\n", 0600);
  return out;
}

}  // namespace porthole::client
