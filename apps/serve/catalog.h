// What the library holds at one moment: an immutable value that scanner, sessions and status share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace porthole::serve {

struct MediaItem {
  std::string id;  // 32 hex digits, derived from the path: the same after a restart
  std::string title;
  std::string file_name;
  std::string path;  // never leaves the server
  std::string content_type;
  std::string video_codec;
  std::string audio_codec;
  std::string unplayable;  // a sentence; empty: it can be played
  std::uint64_t duration_ms = 0;
  std::uint64_t size_bytes = 0;
  std::int64_t modified_ns = 0;
  std::uint32_t width = 0;
  std::uint32_t height = 0;
  bool has_poster = false;
};

struct Catalog {
  std::uint64_t revision = 0;
  std::vector<MediaItem> items;  // by title

  const MediaItem* find(std::string_view id) const {
    auto it = std::find_if(items.begin(), items.end(), [&](const MediaItem& i) { return i.id == id; });
    return it == items.end() ? nullptr : &*it;
  }
};
using CatalogPtr = std::shared_ptr<const Catalog>;

}  // namespace porthole::serve
