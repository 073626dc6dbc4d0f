#include "ts2021/map_framing.h"

#include <gtest/gtest.h>

#include "base/rng.h"
#include "support/vectors.h"
#include "ts2021/json.h"
#include "ts2021/limits.h"

namespace porthole::ts2021 {
namespace {

std::vector<std::string> read_all(Bytes stream, bool zstd, std::size_t slice) {
  MapFrameReader reader(zstd);
  std::vector<std::string> out;
  for (std::size_t at = 0; at < stream.size(); at += slice) {
    EXPECT_TRUE(reader.consume(stream.subspan(at, std::min(slice, stream.size() - at))).ok());
    while (auto message = reader.next()) {
      EXPECT_TRUE(message->ok());
      if (!message->ok()) return out;
      out.emplace_back(as_text(**message));
    }
  }
  EXPECT_EQ(reader.buffered(), 0u);
  return out;
}

TEST(MapFraming, Vectors) {
  const auto v = test::load_vectors("control-noise.json");
  const auto& f = v.at("map_framing").as_object();
  const std::string json(test::text(f.at("json")));
  EXPECT_EQ(read_all(test::unhex(f.at("uncompressed")), false, 7), std::vector<std::string>{json});
  for (std::string_view form : {"zstd_raw_block_no_checksum", "zstd_raw_block_with_checksum"}) {
    EXPECT_EQ(read_all(test::unhex(f.at(form)), true, 5), std::vector<std::string>{json}) << form;
  }
  EXPECT_EQ(to_hex(frame_map_message(json, false)), test::text(f.at("uncompressed")));
}

TEST(MapFraming, CapturedFrames) {
  const auto capture = test::load_capture("map-raw.json");
  ByteVector stream;
  std::vector<boost::json::value> expected;
  for (const auto& frame : capture.at("frames").as_array()) {
    append(stream, test::unhex(frame.at("frame")));
    expected.push_back(frame.at("json"));
  }
  ASSERT_GE(expected.size(), 4u);
  for (std::size_t slice : {std::size_t{1}, std::size_t{3}, std::size_t{100}, stream.size()}) {
    std::vector<std::string> messages = read_all(stream, true, slice);
    ASSERT_EQ(messages.size(), expected.size());
    for (std::size_t i = 0; i < messages.size(); ++i) {
      auto wire = parse_map_response(as_bytes(messages[i]));
      auto listed = parse_map_response(as_bytes(boost::json::serialize(expected[i])));
      ASSERT_TRUE(wire.ok() && listed.ok());
      // The recorder gave the kernel version of its machine another name in the listed form.
      if (wire->node && wire->node->hostinfo) wire->node->hostinfo->os_version = listed->node->hostinfo->os_version;
      EXPECT_EQ(encode_map_response(*wire), encode_map_response(*listed));
    }
  }
}

TEST(MapFraming, OurFramesReadBack) {
  SeededRng rng(2);
  std::vector<std::string> messages{"{}", "{\"KeepAlive\":true}", ""};
  std::string noise(300'000, '\0');
  for (char& c : noise) c = static_cast<char>(rng.u32());
  messages.push_back(noise);
  messages.push_back(std::string(3'000'000, 'z'));
  for (bool zstd : {false, true}) {
    ByteVector stream;
    for (const auto& m : messages) append(stream, frame_map_message(m, zstd));
    EXPECT_EQ(read_all(stream, zstd, 16384), messages);
  }
}

TEST(MapFraming, SeveralFramesMakeOneMessage) {
  ByteVector a = zstd_compress(as_bytes("{\"Domain\":")), b = zstd_compress(as_bytes("\"x\"}"));
  ByteVector both = a;
  append(both, b);
  EXPECT_EQ(as_text(*zstd_decompress(both)), "{\"Domain\":\"x\"}");
}

TEST(MapFraming, Bombs) {
  // 65 MiB of zeros compress to a few KiB and must stop at the limit.
  ByteVector zeros(kMapMessageSizeMax + 1, 0);
  auto r = zstd_decompress(zstd_compress(zeros));
  ASSERT_FALSE(r.ok());
  EXPECT_EQ(r.error().code, ErrorCode::kLimit);
  zeros.pop_back();
  EXPECT_TRUE(zstd_decompress(zstd_compress(zeros)).ok());

  MapFrameReader reader(true);
  EXPECT_FALSE(reader.consume(ByteVector{0xff, 0xff, 0xff, 0xff}).ok());
  MapFrameReader second(false);
  ByteVector two = frame_map_message("{}", false);
  append(two, ByteVector{0xff, 0xff, 0xff, 0x7f});
  ASSERT_TRUE(second.consume(two).ok());
  ASSERT_TRUE(second.next().has_value());
  auto bad = second.next();
  ASSERT_TRUE(bad.has_value());
  EXPECT_FALSE(bad->ok());
}

TEST(MapFraming, DamagedFramesFail) {
  ByteVector good = zstd_compress(as_bytes(std::string(5000, 'a') + "bcd"));
  for (std::size_t n = 0; n < good.size(); ++n) EXPECT_FALSE(zstd_decompress(Bytes(good).first(n)).ok()) << n;
  SeededRng rng(9);
  for (int i = 0; i < 2000; ++i) {
    ByteVector bad = good;
    bad[rng.below(bad.size())] ^= static_cast<std::uint8_t>(1 + rng.below(255));
    (void)zstd_decompress(bad).ok();  // any answer, no crash; without checksum some changes pass
  }
}

}  // namespace
}  // namespace porthole::ts2021
