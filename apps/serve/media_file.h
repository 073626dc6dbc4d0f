// FFmpeg, kept behind two functions: what is in a media file, and a picture of it. Files are untrusted: only container
// formats of media are opened (no playlists that name other files), only local files are read, and each call has a
// time limit and ends early when somebody asks it to. Any thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <stop_token>
#include <string>

namespace porthole::serve {

struct MediaFacts {
  std::string title;  // from the file's metadata; empty: none
  std::string video_codec, audio_codec, content_type;
  std::uint64_t duration_ms = 0;
  std::uint32_t width = 0, height = 0;
  bool has_poster = false;
  std::string unplayable;  // a sentence; empty: playable
  bool late = false;       // the time was over, or `stop` came, before much was known
};
MediaFacts probe_media(const std::string& path, std::chrono::milliseconds time_max, std::stop_token stop = {});

struct Picture {
  std::string content_type;
  std::string image;
  std::string error;  // a sentence; empty: there is an image
};
// The embedded picture, else the frame at 10 % as JPEG.
Picture make_poster(const std::string& path, std::chrono::milliseconds time_max, std::stop_token stop = {});

// By the file's name; empty: not a media file.
std::string media_content_type(const std::string& path);

// Throws app::CommandError where FFmpeg is not installed. The functions above do so themselves.
void need_ffmpeg();

}  // namespace porthole::serve
