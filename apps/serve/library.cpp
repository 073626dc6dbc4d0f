#include "serve/library.h"

#include <fcntl.h>
#include <openssl/sha.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
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

bool below(const std::string& path, const std::string& folder) {
  return path.size() > folder.size() && path.starts_with(folder) && (folder == "/" || path[folder.size()] == '/');
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

std::vector<std::string> Library::problems() const {
  std::lock_guard lock(mutex_);
  return problems_;
}

bool Library::is_root(const std::string& canonical) const {
  return std::find(roots_.begin(), roots_.end(), canonical) != roots_.end();
}

bool Library::inside(const std::string& canonical) const {
  return std::any_of(roots_.begin(), roots_.end(), [&](const std::string& root) { return below(canonical, root); });
}

// What a disk leaves behind that was taken away is an empty folder on another one.
bool Library::still_there(const std::string& root, bool empty) {
  struct stat s {};
  if (::stat(root.c_str(), &s) != 0) return true;  // the walk will say what is wrong
  auto known = devices_.find(root);
  if (empty) return known == devices_.end() || known->second == s.st_dev;
  devices_[root] = s.st_dev;
  return true;
}

Library::Walk Library::walk() {
  Walk out;
  std::set<std::string> seen;  // canonical paths, so that links neither loop nor double
  std::vector<std::pair<std::string, int>> folders;
  for (const std::string& root : roots_) folders.emplace_back(root, 0);
  bool too_many = false;
  std::string too_deep;
  while (!folders.empty() && !too_many && !stop_.stop_requested()) {
    auto [folder, depth] = folders.back();
    folders.pop_back();
    if (!seen.insert(folder).second) continue;
    std::error_code error;
    fs::directory_iterator it(folder, error);
    if (!error && is_root(folder) && !still_there(folder, it == fs::directory_iterator())) {
      out.unread.push_back(folder);
      out.problems.push_back("the folder " + session::clean_text(folder, session::kTextBytesMax) +
                             " is empty and on another disk than before, so its own seems to be away; what it held stays listed as it was");
      continue;
    }
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
        else too_deep = canonical;
        continue;
      }
      if (!S_ISREG(s.st_mode) || media_content_type(canonical).empty() || !seen.insert(canonical).second) continue;
      if (out.files.size() >= kItemsMax) {
        too_many = true;
        break;
      }
      out.files.push_back({canonical, static_cast<std::uint64_t>(s.st_size), modified_ns(s)});
    }
    // A folder inside that has just been removed is none of ours any more.
    if (error && (is_root(folder) || error != std::errc::no_such_file_or_directory)) {
      out.unread.push_back(folder);
      out.problems.push_back("the folder " + session::clean_text(folder, session::kTextBytesMax) + " cannot be read (" + error.message() +
                             "); what it held stays listed as it was");
    }
  }
  if (!too_deep.empty())
    out.problems.push_back("folders more than " + std::to_string(kFolderDepthMax) + " deep are left out, " +
                           session::clean_text(too_deep, session::kTextBytesMax) + " among them; give one of them with --library");
  if (too_many)
    out.problems.push_back("the library holds more than " + std::to_string(kItemsMax) + " files; the others are left out");
  // Of hundreds of folders without permission, the first few tell enough.
  if (out.problems.size() > kProblemsMax) {
    const std::size_t more = out.problems.size() - kProblemsMax;
    out.problems.resize(kProblemsMax);
    out.problems.push_back("and so on: " + std::to_string(more) + " more");
  }
  return out;
}

MediaItem Library::describe(const Found& file, const MediaFacts& facts) const {
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
  return item;
}

void Library::list(std::vector<MediaItem> items) {
  auto next = std::make_shared<Catalog>();
  next->items = std::move(items);
  std::sort(next->items.begin(), next->items.end(), [](const MediaItem& a, const MediaItem& b) {
    return std::tie(a.title, a.path) < std::tie(b.title, b.path);
  });
  std::lock_guard lock(mutex_);
  next->revision = catalog_->revision + 1;
  catalog_ = std::move(next);
}

bool Library::scan(const std::function<void(Step)>& tell) {
  Walk found = walk();
  if (stop_.stop_requested()) return false;
  if (found.problems != problems()) {
    for (const std::string& problem : found.problems) log_("library: " + problem);
    if (found.problems.empty()) log_("library: all folders can be read again");
    {
      std::lock_guard lock(mutex_);
      problems_ = found.problems;
    }
    if (tell) tell(Step::kProblems);
  }
  CatalogPtr before = catalog();
  std::unordered_map<std::string, const MediaItem*> known;
  for (const MediaItem& item : before->items) known.emplace(item.path, &item);
  std::vector<MediaItem> items;
  struct Todo {
    const Found* file;
    const MediaItem* old;  // as the catalog has it; null: not at all
    bool slow;             // its first time was not enough
  };
  std::deque<Todo> todo;
  for (const Found& file : found.files) {
    auto it = known.find(file.path);
    const MediaItem* old = it == known.end() ? nullptr : it->second;
    if (old && old->size_bytes == file.size_bytes && old->modified_ns == file.modified_ns)
      items.push_back(*old);
    else
      todo.push_back({&file, old, false});
    if (old) known.erase(it);
  }
  for (const auto& [path, item] : known)
    if (std::any_of(found.unread.begin(), found.unread.end(), [&](const std::string& folder) { return below(path, folder); }))
      items.push_back(*item);
  if (todo.empty() && items.size() == before->items.size()) return false;

  auto listed_at = std::chrono::steady_clock::now();
  bool listed = true;  // whether the catalog has all of `items`
  while (!todo.empty()) {
    const Todo next = todo.front();
    if (!listed && (next.slow || std::chrono::steady_clock::now() - listed_at >= kListInterval)) {
      std::vector<MediaItem> so_far = items;
      for (const Todo& later : todo)
        if (later.old) so_far.push_back(*later.old);
      list(std::move(so_far));
      listed = true;
      listed_at = std::chrono::steady_clock::now();
      if (tell) tell(Step::kListed);
    }
    const MediaFacts facts = probe_media(next.file->path, next.slow ? kProbeTimeout : kFirstProbeTimeout, stop_.get_token());
    if (stop_.stop_requested()) return false;
    todo.pop_front();
    if (facts.late && !next.slow) {
      todo.push_back({next.file, next.old, true});
      continue;
    }
    items.push_back(describe(*next.file, facts));
    listed = false;
  }
  list(std::move(items));
  return true;
}

void Library::start(std::chrono::milliseconds interval, std::function<void(Step)> tell) {
  thread_ = std::thread([this, interval, tell = std::move(tell)] {
    for (;;) {
      if (scan(tell)) tell(Step::kComplete);
      std::unique_lock lock(mutex_);
      wake_.wait_for(lock, interval, [this] { return stop_.stop_requested() || rescan_; });
      rescan_ = false;
      if (stop_.stop_requested()) return;
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
    stop_.request_stop();
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
  Picture out = make_poster(item.path, kProbeTimeout, stop_.get_token());
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
