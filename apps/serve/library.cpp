#include "serve/library.h"

#include <fcntl.h>
#include <openssl/sha.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <set>
#include <unordered_map>

#include "serve/limits.h"
#include "session/limits.h"
#include "session/names.h"
#include "support/support.h"

namespace porthole::serve {
namespace {

namespace fs = std::filesystem;

std::string id_of(const std::string& path) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(path.data()), path.size(), digest);
  std::string out;
  for (int i = 0; i < 16; ++i) {
    out += "0123456789abcdef"[digest[i] >> 4];
    out += "0123456789abcdef"[digest[i] & 15];
  }
  return out;
}

// "Big_Buck.Bunny" -> "Big Buck Bunny".
std::string title_of(const std::string& file_name) {
  std::string out = file_name.substr(0, file_name.rfind('.'));
  for (char& c : out)
    if (c == '_' || c == '.') c = ' ';
  return session::clean_text(out, 256);
}

std::int64_t modified_ns(const struct stat& s) { return s.st_mtim.tv_sec * 1'000'000'000LL + s.st_mtim.tv_nsec; }

}  // namespace

Library::Library(std::vector<std::string> folders, std::string cache_dir, LogLine log)
    : cache_dir_(std::move(cache_dir)), log_(std::move(log)), catalog_(std::make_shared<Catalog>()) {
  need_ffmpeg();
  for (const std::string& folder : folders) {
    std::error_code error;
    fs::path canonical = fs::canonical(folder, error);
    if (error) throw app::CommandError("cannot use the library folder " + folder + ": " + error.message());
    if (!fs::is_directory(canonical, error)) throw app::CommandError("the library " + folder + " is not a folder");
    roots_.push_back(canonical.string());
  }
  app::ensure_state_dir(cache_dir_);
}

Library::~Library() { stop(); }

CatalogPtr Library::catalog() const {
  std::lock_guard lock(mutex_);
  return catalog_;
}

bool Library::inside(const std::string& canonical) const {
  for (const std::string& root : roots_)
    if (canonical.size() > root.size() && canonical.starts_with(root) && (root == "/" || canonical[root.size()] == '/'))
      return true;
  return false;
}

std::vector<Library::Found> Library::walk() {
  std::vector<Found> out;
  std::set<std::string> seen;  // canonical paths, so that links neither loop nor double
  std::vector<std::pair<std::string, int>> folders;
  for (const std::string& root : roots_) folders.emplace_back(root, 0);
  bool too_many = false;
  while (!folders.empty() && !too_many) {
    auto [folder, depth] = folders.back();
    folders.pop_back();
    if (!seen.insert(folder).second) continue;
    std::error_code error;
    fs::directory_iterator it(folder, fs::directory_options::skip_permission_denied, error);
    for (; !error && it != fs::directory_iterator(); it.increment(error)) {
      std::string name = it->path().filename().string();
      if (name.empty() || name[0] == '.') continue;
      std::error_code gone;
      std::string canonical = fs::canonical(it->path(), gone).string();
      if (gone || !inside(canonical)) continue;
      struct stat s {};
      if (::stat(canonical.c_str(), &s) != 0) continue;
      if (S_ISDIR(s.st_mode)) {
        if (depth < kFolderDepthMax) folders.emplace_back(canonical, depth + 1);
        continue;
      }
      if (!S_ISREG(s.st_mode) || media_content_type(canonical).empty() || !seen.insert(canonical).second) continue;
      if (out.size() >= kItemsMax) {
        too_many = true;
        break;
      }
      out.push_back({canonical, static_cast<std::uint64_t>(s.st_size), modified_ns(s)});
    }
  }
  if (too_many && !too_many_logged_)
    log_("the library holds more than " + std::to_string(kItemsMax) + " files; the others are left out");
  too_many_logged_ = too_many;
  return out;
}

bool Library::scan() {
  std::vector<Found> found = walk();
  CatalogPtr before = catalog();
  std::unordered_map<std::string, const MediaItem*> known;
  for (const MediaItem& item : before->items) known.emplace(item.path, &item);
  auto next = std::make_shared<Catalog>();
  bool changed = found.size() != before->items.size();
  for (const Found& file : found) {
    {
      std::lock_guard lock(mutex_);
      if (stopping_) return false;
    }
    auto it = known.find(file.path);
    if (it != known.end() && it->second->size_bytes == file.size_bytes && it->second->modified_ns == file.modified_ns) {
      next->items.push_back(*it->second);
      continue;
    }
    changed = true;
    MediaFacts facts = probe_media(file.path, kProbeTimeout);
    std::string name = fs::path(file.path).filename().string();
    if (!facts.unplayable.empty()) log_("library: " + session::clean_text(name, 200) + ": " + facts.unplayable);
    MediaItem item;
    item.id = id_of(file.path);
    item.title = facts.title.empty() ? title_of(name) : facts.title;
    item.file_name = session::clean_text(name, session::kTextBytesMax);
    item.path = file.path;
    item.content_type = facts.content_type;
    item.video_codec = facts.video_codec;
    item.audio_codec = facts.audio_codec;
    item.unplayable = facts.unplayable;
    item.duration_ms = facts.duration_ms;
    item.size_bytes = file.size_bytes;
    item.modified_ns = file.modified_ns;
    item.width = facts.width;
    item.height = facts.height;
    item.has_poster = facts.has_poster;
    next->items.push_back(std::move(item));
  }
  if (!changed) return false;
  std::sort(next->items.begin(), next->items.end(), [](const MediaItem& a, const MediaItem& b) {
    return std::tie(a.title, a.path) < std::tie(b.title, b.path);
  });
  next->revision = before->revision + 1;
  std::lock_guard lock(mutex_);
  catalog_ = std::move(next);
  return true;
}

void Library::start(std::chrono::milliseconds interval, std::function<void()> changed) {
  thread_ = std::thread([this, interval, changed = std::move(changed)] {
    for (;;) {
      if (scan()) changed();
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, interval, [this] { return stopping_ || rescan_; });
      rescan_ = false;
      if (stopping_) return;
    }
  });
}

void Library::rescan_soon() {
  std::lock_guard lock(mutex_);
  rescan_ = true;
  wake_.notify_all();
}

void Library::stop() {
  {
    std::lock_guard lock(mutex_);
    stopping_ = true;
    wake_.notify_all();
  }
  if (thread_.joinable()) thread_.join();
}

Library::Opened Library::open(const MediaItem& item) const {
  Opened out;
  // O_NONBLOCK: a file that was replaced by a FIFO must not hang the thread.
  out.fd = ::open(item.path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (out.fd < 0) {
    out.error = std::string("the file cannot be opened: ") + std::strerror(errno);
    return out;
  }
  struct stat s {};
  char real[4096];
  ssize_t size = ::readlink(("/proc/self/fd/" + std::to_string(out.fd)).c_str(), real, sizeof real);
  bool served = ::fstat(out.fd, &s) == 0 && S_ISREG(s.st_mode) && size > 0 &&
                inside(std::string(real, static_cast<std::size_t>(size)));
  if (!served) {
    ::close(out.fd);
    out.fd = -1;
    out.error = "the file is no longer part of the library";
    return out;
  }
  out.size_bytes = static_cast<std::uint64_t>(s.st_size);
  ::posix_fadvise(out.fd, 0, 0, POSIX_FADV_SEQUENTIAL);
  return out;
}

Picture Library::poster(const MediaItem& item) const {
  std::string file = cache_dir_ + "/" + item.id + "-" + std::to_string(item.modified_ns) + "-" + std::to_string(item.size_bytes);
  struct stat s {};
  if (::stat(file.c_str(), &s) == 0 && s.st_size > 0 && s.st_size <= static_cast<off_t>(session::kPosterBytesMax)) {
    Picture out;
    out.image = app::read_file(file);
    out.content_type = out.image.starts_with("\x89PNG") ? "image/png" : "image/jpeg";
    return out;
  }
  Opened check = open(item);
  if (check.fd < 0) return Picture{{}, {}, check.error};
  ::close(check.fd);
  Picture out = make_poster(item.path, kProbeTimeout);
  if (out.error.empty()) {
    try {
      app::write_file_atomic(file, out.image, 0600);
    } catch (const app::CommandError& e) {
      log_(std::string("poster cache: ") + e.what());
    }
  }
  return out;
}

}  // namespace porthole::serve
