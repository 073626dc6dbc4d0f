#include "serve/ffmpeg.h"

#include <dlfcn.h>

#include <string>

#include "support/support.h"

namespace porthole::serve {
namespace {

void* open_library(const char* name) {
  void* handle = ::dlopen(name, RTLD_LAZY | RTLD_LOCAL);
  if (!handle) throw app::CommandError(std::string("the library of films needs FFmpeg: ") + ::dlerror());
  return handle;
}

template <class F>
void find(void* library, const char* name, F& function) {
  void* address = ::dlsym(library, name);
  if (!address) throw app::CommandError(std::string("this FFmpeg does not have ") + name);
  function = reinterpret_cast<F>(address);
}

Ffmpeg load() {
  void* avutil = open_library("libavutil.so." AV_STRINGIFY(LIBAVUTIL_VERSION_MAJOR));
  void* avcodec = open_library("libavcodec.so." AV_STRINGIFY(LIBAVCODEC_VERSION_MAJOR));
  void* avformat = open_library("libavformat.so." AV_STRINGIFY(LIBAVFORMAT_VERSION_MAJOR));
  void* swscale = open_library("libswscale.so." AV_STRINGIFY(LIBSWSCALE_VERSION_MAJOR));
  Ffmpeg out;
#define PORTHOLE_FFMPEG_FIND(library, function) find(library, #function, out.function);
  PORTHOLE_FFMPEG_FUNCTIONS(PORTHOLE_FFMPEG_FIND)
#undef PORTHOLE_FFMPEG_FIND
  out.av_log_set_level(AV_LOG_QUIET);  // it writes to stderr by itself
  return out;
}

}  // namespace

const Ffmpeg& ffmpeg() {
  static const Ffmpeg functions = load();
  return functions;
}

}  // namespace porthole::serve
