// For tests: a folder that vanishes, and a short real film.
#pragma once

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

namespace porthole::app {

class TempDir {
 public:
  TempDir() {
    char name[] = "/tmp/porthole-test-XXXXXX";
    path_ = ::mkdtemp(name) ? name : "";
  }
  ~TempDir() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

inline void write_text(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary) << text;
}

// Two seconds of H.264 and AAC with the title "Test Film"; needs the ffmpeg program.
inline void make_clip(const std::string& path) {
  std::string command =
      "ffmpeg -v error -y -f lavfi -i testsrc=size=320x180:rate=25:duration=2 -f lavfi -i sine=frequency=440:duration=2 "
      "-c:v libx264 -preset ultrafast -b:v 2M -pix_fmt yuv420p -c:a aac -metadata title='Test Film' '" + path + "'";
  ASSERT_EQ(std::system(command.c_str()), 0) << "the ffmpeg program is needed to make test media";
}

}  // namespace porthole::app
