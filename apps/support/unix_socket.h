// bind() and connect() of Unix sockets by their path. A socket's name has room for 107 characters, and a state directory may
// be longer than that: such a path is reached by way of its open directory.
#pragma once

#include <string>

namespace porthole::app {

// As bind() and connect(): 0, or -1 with errno.
int bind_unix(int fd, const std::string& path);
int connect_unix(int fd, const std::string& path);

}  // namespace porthole::app
