// FFmpeg's functions, loaded at run time. Debian's FFmpeg stands on 120 other shared libraries; linked, each of them would
// be mapped, relocated and initialised in every `porthole`, the node and the client included: 3.7 MB of private memory
// and 25 ms of every start, for what `porthole serve` alone uses.
//
// Which release it must be is fixed by the headers we are compiled with (the library's name carries its major version);
// the types of the functions come from there, too.
#pragma once

extern "C" {
#include <libavcodec/avcodec.h>
#include <libavformat/avformat.h>
#include <libswscale/swscale.h>
}

// X(library, function)
#define PORTHOLE_FFMPEG_FUNCTIONS(X)        \
  X(avutil, av_dict_free)                   \
  X(avutil, av_dict_get)                    \
  X(avutil, av_dict_set)                    \
  X(avutil, av_frame_alloc)                 \
  X(avutil, av_frame_free)                  \
  X(avutil, av_frame_get_buffer)            \
  X(avutil, av_log_set_level)               \
  X(avutil, av_strerror)                    \
  X(avcodec, av_packet_alloc)               \
  X(avcodec, av_packet_free)                \
  X(avcodec, av_packet_unref)               \
  X(avcodec, avcodec_alloc_context3)        \
  X(avcodec, avcodec_find_decoder)          \
  X(avcodec, avcodec_find_encoder)          \
  X(avcodec, avcodec_free_context)          \
  X(avcodec, avcodec_get_name)              \
  X(avcodec, avcodec_open2)                 \
  X(avcodec, avcodec_parameters_to_context) \
  X(avcodec, avcodec_receive_frame)         \
  X(avcodec, avcodec_receive_packet)        \
  X(avcodec, avcodec_send_frame)            \
  X(avcodec, avcodec_send_packet)           \
  X(avformat, av_read_frame)                \
  X(avformat, av_seek_frame)                \
  X(avformat, avformat_alloc_context)       \
  X(avformat, avformat_close_input)         \
  X(avformat, avformat_find_stream_info)    \
  X(avformat, avformat_open_input)          \
  X(swscale, sws_freeContext)               \
  X(swscale, sws_getContext)                \
  X(swscale, sws_scale)

namespace porthole::serve {

struct Ffmpeg {
#define PORTHOLE_FFMPEG_MEMBER(library, function) decltype(&::function) function = nullptr;
  PORTHOLE_FFMPEG_FUNCTIONS(PORTHOLE_FFMPEG_MEMBER)
#undef PORTHOLE_FFMPEG_MEMBER
};

// Loaded by the first call, for the rest of the process. Any thread. Throws app::CommandError with the name of the
// library that is missing; later calls try again.
const Ffmpeg& ffmpeg();

}  // namespace porthole::serve
