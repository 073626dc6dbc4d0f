// The folders of the household as a list of media. One thread scans; everybody else takes the current catalog, which
// never changes under them. A folder that cannot be read keeps its items in the catalog: most likely its disk is away and
// comes back. What is wrong with the folders is said once, when it begins and when it ends.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <stop_token>
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
  enum class Step {
    kListed,    // the scan goes on; the catalog has what is known so far
    kComplete,  // the catalog has changed, and the scan is over
    kProblems,  // problems() has changed
  };

  // `folders` must exist (CommandError). Posters are cached in `cache_dir`, made when needed.
  Library(std::vector<std::string> folders, std::string cache_dir, LogLine log);
  ~Library();

  CatalogPtr catalog() const;
  // What of the folders is not in the catalog, or not as it is now: sentences.
  std::vector<std::string> problems() const;
  // Walks the folders once and probes what is new or changed; true when the catalog changed. One thread at a time.
  bool scan(const std::function<void(Step)>& tell = {});

  // Scans now and then every `interval` on a thread of its own; `tell` is called from there.
  void start(std::chrono::milliseconds interval, std::function<void(Step)> tell);
  void rescan_soon();
  // Interrupts what is being read, also a poster.
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
  struct Walk {
    std::vector<Found> files;
    std::vector<std::string> unread;  // folders
    std::vector<std::string> problems;
  };
  Walk walk();
  bool is_root(const std::string& canonical) const;
  bool still_there(const std::string& root, bool empty);
  bool inside(const std::string& canonical) const;
  MediaItem describe(const Found& file, const MediaFacts& facts) const;
  void list(std::vector<MediaItem> items);

  std::vector<std::string> roots_;  // canonical
  std::string cache_dir_;
  LogLine log_;
  mutable std::mutex mutex_;
  CatalogPtr catalog_;
  std::vector<std::string> problems_;
  std::map<std::string, dev_t> devices_;  // of the roots, when something was in them last; the scanning thread's

  std::thread thread_;
  std::condition_variable wake_;
  std::stop_source stop_;
  bool rescan_ = false;
};

}  // namespace porthole::serve
