// The folders of the household as a list of media. One thread scans; everybody else takes the current catalog, which
// never changes under them.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>
#include <condition_variable>

#include "serve/catalog.h"
#include "serve/media_file.h"

namespace porthole::serve {

class Library {
 public:
  using LogLine = std::function<void(const std::string&)>;

  // `folders` must exist (CommandError). Posters are cached in `cache_dir`, made when needed.
  Library(std::vector<std::string> folders, std::string cache_dir, LogLine log);
  ~Library();

  CatalogPtr catalog() const;
  // Walks the folders once and probes what is new or changed; true when the catalog changed. One thread at a time.
  bool scan();

  // Scans now and then every `interval` on a thread of its own; `changed` is called from there.
  void start(std::chrono::milliseconds interval, std::function<void()> changed);
  void rescan_soon();
  void stop();

  // Opens an item for reading. The file that was really opened must lie inside a folder of the library, whatever
  // symbolic links say by now. Blocks; any thread.
  struct Opened {
    int fd = -1;  // the caller's
    std::uint64_t size_bytes = 0;
    std::string error;  // a sentence; empty: open
  };
  Opened open(const MediaItem& item) const;
  // From the cache, else made and cached. Blocks; one thread at a time.
  Picture poster(const MediaItem& item) const;

 private:
  struct Found {
    std::string path;
    std::uint64_t size_bytes;
    std::int64_t modified_ns;
  };
  std::vector<Found> walk();
  bool inside(const std::string& canonical) const;

  std::vector<std::string> roots_;  // canonical
  std::string cache_dir_;
  LogLine log_;
  mutable std::mutex mutex_;
  CatalogPtr catalog_;
  bool too_many_logged_ = false;

  std::thread thread_;
  std::condition_variable wake_;
  bool stopping_ = false;
  bool rescan_ = false;
};

}  // namespace porthole::serve
