#include "serve/media_file.h"

#include <algorithm>
#include <array>
#include <memory>

#include "serve/ffmpeg.h"
#include "serve/limits.h"
#include "session/limits.h"
#include "session/names.h"

namespace porthole::serve {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

struct Free {
  void operator()(AVFormatContext* f) const { ffmpeg().avformat_close_input(&f); }
  void operator()(AVCodecContext* c) const { ffmpeg().avcodec_free_context(&c); }
  void operator()(AVPacket* p) const { ffmpeg().av_packet_free(&p); }
  void operator()(AVFrame* f) const { ffmpeg().av_frame_free(&f); }
  void operator()(SwsContext* s) const { ffmpeg().sws_freeContext(s); }
};
template <class T>
using Owned = std::unique_ptr<T, Free>;

std::string reason(int code) {
  char text[AV_ERROR_MAX_STRING_SIZE] = "";
  ffmpeg().av_strerror(code, text, sizeof text);
  return text;
}

// An opened file whose reads give up at a deadline. Not movable: FFmpeg holds its address.
class Input {
 public:
  Input(const std::string& path, milliseconds time_max, std::stop_token stop)
      : deadline_(Clock::now() + time_max), stop_(std::move(stop)) {
    AVFormatContext* raw = ffmpeg().avformat_alloc_context();
    if (!raw) {
      error = "not enough memory";
      return;
    }
    raw->interrupt_callback.callback = [](void* self) { return static_cast<Input*>(self)->late() ? 1 : 0; };
    raw->interrupt_callback.opaque = this;
    AVDictionary* options = nullptr;
    ffmpeg().av_dict_set(&options, "protocol_whitelist", "file", 0);
    ffmpeg().av_dict_set(&options, "format_whitelist",
                "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,mp3,flac,ogg,wav,aac,asf,flv", 0);
    int code = ffmpeg().avformat_open_input(&raw, ("file:" + path).c_str(), nullptr, &options);  // frees `raw` on failure
    ffmpeg().av_dict_free(&options);
    if (code < 0) {
      error = reason(code);
      return;
    }
    format.reset(raw);
    code = ffmpeg().avformat_find_stream_info(raw, nullptr);
    if (code < 0) error = reason(code);
  }
  Input(const Input&) = delete;
  Input& operator=(const Input&) = delete;
  bool late() const { return stop_.stop_requested() || Clock::now() > deadline_; }

  Owned<AVFormatContext> format;
  std::string error;

 private:
  Clock::time_point deadline_;
  std::stop_token stop_;
};

bool is_cover(const AVStream* s) { return (s->disposition & AV_DISPOSITION_ATTACHED_PIC) != 0; }

const AVStream* video_of(const AVFormatContext* f) {
  for (unsigned i = 0; i < f->nb_streams; ++i)
    if (f->streams[i]->codecpar->codec_type == AVMEDIA_TYPE_VIDEO && !is_cover(f->streams[i])) return f->streams[i];
  return nullptr;
}

std::string encode_jpeg(const AVFrame* from) {
  int width = std::min(from->width, kPosterWidth);
  // Whole pixels in pairs, as the subsampled JPEG formats want them.
  int height = std::max<int>(2, static_cast<int>(static_cast<std::int64_t>(from->height) * width / from->width) & ~1);
  width = std::max(2, width & ~1);
  if (height > 4 * kPosterWidth) return {};
  Owned<SwsContext> scale(ffmpeg().sws_getContext(from->width, from->height, static_cast<AVPixelFormat>(from->format),
                                                  width, height, AV_PIX_FMT_YUVJ420P, SWS_BICUBIC, nullptr, nullptr,
                                                  nullptr));
  const AVCodec* codec = ffmpeg().avcodec_find_encoder(AV_CODEC_ID_MJPEG);
  if (!scale || !codec) return {};
  Owned<AVFrame> to(ffmpeg().av_frame_alloc());
  Owned<AVCodecContext> encoder(ffmpeg().avcodec_alloc_context3(codec));
  Owned<AVPacket> packet(ffmpeg().av_packet_alloc());
  if (!to || !encoder || !packet) return {};
  to->format = AV_PIX_FMT_YUVJ420P;
  to->width = width;
  to->height = height;
  if (ffmpeg().av_frame_get_buffer(to.get(), 0) < 0) return {};
  if (ffmpeg().sws_scale(scale.get(), from->data, from->linesize, 0, from->height, to->data, to->linesize) <= 0) return {};
  encoder->pix_fmt = AV_PIX_FMT_YUVJ420P;
  encoder->width = width;
  encoder->height = height;
  encoder->time_base = AVRational{1, 25};
  encoder->flags |= AV_CODEC_FLAG_QSCALE;
  encoder->global_quality = FF_QP2LAMBDA * 4;
  to->quality = encoder->global_quality;
  to->pts = 0;
  if (ffmpeg().avcodec_open2(encoder.get(), codec, nullptr) < 0 ||
      ffmpeg().avcodec_send_frame(encoder.get(), to.get()) < 0 ||
      ffmpeg().avcodec_receive_packet(encoder.get(), packet.get()) < 0)
    return {};
  return std::string(reinterpret_cast<const char*>(packet->data), static_cast<std::size_t>(packet->size));
}

// The first picture at or after a tenth of the film.
std::string frame_as_jpeg(Input& input, const AVStream* video) {
  AVFormatContext* f = input.format.get();
  const AVCodec* codec = ffmpeg().avcodec_find_decoder(video->codecpar->codec_id);
  if (!codec) return {};
  Owned<AVCodecContext> decoder(ffmpeg().avcodec_alloc_context3(codec));
  if (!decoder || ffmpeg().avcodec_parameters_to_context(decoder.get(), video->codecpar) < 0) return {};
  decoder->thread_count = 1;
  decoder->max_pixels = kPosterSourcePixelsMax;
  if (ffmpeg().avcodec_open2(decoder.get(), codec, nullptr) < 0) return {};
  if (f->duration > 0 && ffmpeg().av_seek_frame(f, -1, f->duration / 10, AVSEEK_FLAG_BACKWARD) < 0)
    ffmpeg().av_seek_frame(f, -1, 0, AVSEEK_FLAG_BACKWARD);
  Owned<AVPacket> packet(ffmpeg().av_packet_alloc());
  Owned<AVFrame> frame(ffmpeg().av_frame_alloc());
  if (!packet || !frame) return {};
  bool ended = false;
  while (!ended && !input.late()) {
    ended = ffmpeg().av_read_frame(f, packet.get()) < 0;
    if (!ended && packet->stream_index != video->index) {
      ffmpeg().av_packet_unref(packet.get());
      continue;
    }
    // A packet that does not decode is skipped: the next key frame may.
    ffmpeg().avcodec_send_packet(decoder.get(), ended ? nullptr : packet.get());
    if (!ended) ffmpeg().av_packet_unref(packet.get());
    if (ffmpeg().avcodec_receive_frame(decoder.get(), frame.get()) == 0 && frame->width > 0 && frame->height > 0)
      return encode_jpeg(frame.get());
  }
  return {};
}

std::string lower_extension(const std::string& path) {
  std::size_t dot = path.rfind('.');
  std::size_t slash = path.rfind('/');
  if (dot == std::string::npos || (slash != std::string::npos && dot < slash)) return {};
  std::string out = path.substr(dot + 1);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

}  // namespace

void need_ffmpeg() { ffmpeg(); }

std::string media_content_type(const std::string& path) {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 24> kTypes{{
      {"mp4", "video/mp4"},         {"m4v", "video/mp4"},       {"mov", "video/quicktime"}, {"mkv", "video/x-matroska"},
      {"webm", "video/webm"},       {"avi", "video/x-msvideo"}, {"ts", "video/mp2t"},       {"m2ts", "video/mp2t"},
      {"mts", "video/mp2t"},        {"mpg", "video/mpeg"},      {"mpeg", "video/mpeg"},     {"vob", "video/mpeg"},
      {"wmv", "video/x-ms-wmv"},    {"flv", "video/x-flv"},     {"3gp", "video/3gpp"},      {"mp3", "audio/mpeg"},
      {"m4a", "audio/mp4"},         {"m4b", "audio/mp4"},       {"flac", "audio/flac"},     {"ogg", "audio/ogg"},
      {"opus", "audio/ogg"},        {"ogv", "video/ogg"},       {"wav", "audio/wav"},       {"aac", "audio/aac"},
  }};
  std::string extension = lower_extension(path);
  for (const auto& [name, type] : kTypes)
    if (extension == name) return std::string(type);
  return {};
}

MediaFacts probe_media(const std::string& path, milliseconds time_max, std::stop_token stop) {
  MediaFacts out;
  out.content_type = media_content_type(path);
  Input input(path, time_max, std::move(stop));
  out.late = input.late();
  if (!input.error.empty()) {
    out.unplayable = out.late ? "the file takes too long to read" : "the file cannot be read as media: " + input.error;
    return out;
  }
  const AVFormatContext* f = input.format.get();
  if (f->duration > 0) out.duration_ms = static_cast<std::uint64_t>(f->duration / (AV_TIME_BASE / 1000));
  if (const AVDictionaryEntry* title = ffmpeg().av_dict_get(f->metadata, "title", nullptr, 0))
    out.title = session::clean_text(title->value, 256);
  bool any = false;
  for (unsigned i = 0; i < f->nb_streams; ++i) {
    const AVCodecParameters* p = f->streams[i]->codecpar;
    if (is_cover(f->streams[i])) {
      out.has_poster = true;
    } else if (p->codec_type == AVMEDIA_TYPE_VIDEO && out.video_codec.empty()) {
      out.video_codec = ffmpeg().avcodec_get_name(p->codec_id);
      out.width = static_cast<std::uint32_t>(std::max(p->width, 0));
      out.height = static_cast<std::uint32_t>(std::max(p->height, 0));
      out.has_poster = any = true;
    } else if (p->codec_type == AVMEDIA_TYPE_AUDIO && out.audio_codec.empty()) {
      out.audio_codec = ffmpeg().avcodec_get_name(p->codec_id);
      any = true;
    }
  }
  if (!any) out.unplayable = "the file holds neither video nor sound";
  return out;
}

Picture make_poster(const std::string& path, milliseconds time_max, std::stop_token stop) {
  Picture out;
  Input input(path, time_max, std::move(stop));
  if (!input.error.empty()) {
    out.error = "the file cannot be read as media: " + input.error;
    return out;
  }
  const AVFormatContext* f = input.format.get();
  for (unsigned i = 0; i < f->nb_streams; ++i) {
    const AVStream* s = f->streams[i];
    if (!is_cover(s) || s->attached_pic.size <= 0) continue;
    bool jpeg = s->codecpar->codec_id == AV_CODEC_ID_MJPEG;
    bool png = s->codecpar->codec_id == AV_CODEC_ID_PNG;
    if (!(jpeg || png) || static_cast<std::size_t>(s->attached_pic.size) > session::kPosterBytesMax) continue;
    out.content_type = jpeg ? "image/jpeg" : "image/png";
    out.image.assign(reinterpret_cast<const char*>(s->attached_pic.data), static_cast<std::size_t>(s->attached_pic.size));
    return out;
  }
  if (const AVStream* video = video_of(f)) out.image = frame_as_jpeg(input, video);
  out.content_type = "image/jpeg";
  if (out.image.empty() || out.image.size() > session::kPosterBytesMax) {
    out.image.clear();
    out.error = "no picture could be made from this file";
  }
  return out;
}

}  // namespace porthole::serve
