// Tests only: a directory that vanishes with its scope.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace porthole::runtime::test {

class TempDir {
 public:
  TempDir() {
    char pattern[] = "/tmp/porthole-test-XXXXXX";
    path_ = ::mkdtemp(pattern);
  }
  ~TempDir() { std::filesystem::remove_all(path_); }
  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace porthole::runtime::test
