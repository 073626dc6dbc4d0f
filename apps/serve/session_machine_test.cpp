#include "serve/session_machine.h"

#include <gtest/gtest.h>
#include <session.pb.h>

#include <random>

#include "serve/limits.h"
#include "session/limits.h"

namespace porthole::serve {
namespace {

namespace pb = session::pb;

constexpr std::uint64_t kSize = 3 * 1024 * 1024 + 17;

struct Rig {
  Rig() {
    auto c = std::make_shared<Catalog>();
    c->revision = 7;
    for (int i = 0; i < 600; ++i) {
      MediaItem item;
      item.id = "item" + std::to_string(i);
      item.title = "Title " + std::to_string(i);
      item.size_bytes = kSize;
      item.has_poster = i == 0;
      c->items.push_back(item);
    }
    catalog = c;
  }
  void say(pb::Envelope e, std::uint64_t id) {
    e.set_version(1);
    e.set_id(id);
    machine.handle_message(e.SerializeAsString());
  }
  void login() {
    pb::Envelope e;
    e.mutable_login()->set_password("secret");
    e.mutable_login()->set_device_id("0b7755c6-bfa5-42f9-a714-599d4aec7938");
    say(e, 1);
    auto action = machine.poll_action();
    ASSERT_TRUE(action && std::holds_alternative<CheckLogin>(*action));
    EXPECT_EQ(std::get<CheckLogin>(*action).password, "secret");
    LoginOutcome ok;
    ok.success = true;
    ok.remote_ip = "100.64.0.1";
    machine.login_done(1, ok);
    pb::Envelope answer = take();
    EXPECT_TRUE(answer.login_response().success());
    EXPECT_EQ(answer.login_response().remote_ip(), "100.64.0.1");
  }
  void read(std::uint64_t id, std::uint64_t credit, std::uint64_t offset = 0, std::uint64_t length = 0) {
    pb::Envelope e;
    e.mutable_read()->set_item_id("item1");
    e.mutable_read()->set_credit_bytes(credit);
    e.mutable_read()->set_offset(offset);
    e.mutable_read()->set_length(length);
    say(e, id);
  }
  pb::Envelope take() {
    pb::Envelope e;
    std::optional<std::string> bytes = machine.produce();
    EXPECT_TRUE(bytes.has_value());
    EXPECT_TRUE(e.ParseFromString(bytes.value_or("\xff")));
    return e;
  }
  // Does all work at once, as a host with a fast disk does.
  void work() {
    while (auto action = machine.poll_action()) {
      if (auto* open = std::get_if<OpenItem>(&*action)) machine.item_opened(open->id, kSize, "video/mp4", "");
      if (auto* chunk = std::get_if<ReadChunk>(&*action)) {
        std::string content(chunk->size, '\0');
        for (std::size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>((chunk->offset + i) * 31 >> 3);
        machine.chunk_read(chunk->id, std::move(content), "");
      }
      if (std::holds_alternative<CloseItem>(*action)) ++closed;
    }
  }
  // Everything that comes, with work in between.
  std::vector<pb::Envelope> drain() {
    std::vector<pb::Envelope> out;
    for (work(); auto bytes = machine.produce(); work()) {
      pb::Envelope e;
      EXPECT_TRUE(e.ParseFromString(*bytes));
      out.push_back(std::move(e));
    }
    return out;
  }

  CatalogPtr catalog;
  SessionMachine machine{[this] { return catalog; }};
  int closed = 0;
};

TEST(SessionMachine, NothingIsAnsweredBeforeLogin) {
  for (auto body : {pb::Envelope::kList, pb::Envelope::kPosterRequest, pb::Envelope::kRead, pb::Envelope::kCredit, pb::Envelope::kClose}) {
    Rig rig;
    pb::Envelope e;
    if (body == pb::Envelope::kList) e.mutable_list();
    if (body == pb::Envelope::kPosterRequest) e.mutable_poster_request();
    if (body == pb::Envelope::kRead) e.mutable_read()->set_item_id("item1");
    if (body == pb::Envelope::kCredit) e.mutable_credit();
    if (body == pb::Envelope::kClose) e.mutable_close();
    rig.say(e, 5);
    EXPECT_EQ(rig.take().error().code(), pb::Error::NOT_LOGGED_IN);
    EXPECT_TRUE(rig.machine.closing());
    EXPECT_FALSE(rig.machine.poll_action().has_value());
  }
}

TEST(SessionMachine, WrongPasswordsEndTheConnection) {
  Rig rig;
  for (int i = 1; i <= kAttemptsPerConnection; ++i) {
    pb::Envelope e;
    e.mutable_login()->set_device_id("0b7755c6-bfa5-42f9-a714-599d4aec7938");
    rig.say(e, static_cast<std::uint64_t>(i));
    ASSERT_TRUE(rig.machine.poll_action());
    LoginOutcome no;
    no.error = "the password is wrong";
    rig.machine.login_done(static_cast<std::uint64_t>(i), no);
    EXPECT_FALSE(rig.take().login_response().success());
    EXPECT_EQ(rig.machine.closing(), i == kAttemptsPerConnection);
  }
}

TEST(SessionMachine, ListComesInPages) {
  Rig rig;
  rig.login();
  std::size_t seen = 0;
  for (std::uint64_t id = 2; seen < 600; ++id) {
    pb::Envelope e;
    e.mutable_list()->set_offset(static_cast<std::uint32_t>(seen));
    rig.say(e, id);
    pb::Envelope answer = rig.take();
    ASSERT_GT(answer.list_response().items_size(), 0);
    EXPECT_LE(answer.ByteSizeLong(), session::kAnswerBytesMax);
    EXPECT_EQ(answer.list_response().total(), 600u);
    EXPECT_EQ(answer.list_response().items(0).id(), "item" + std::to_string(seen));
    seen += static_cast<std::size_t>(answer.list_response().items_size());
  }
}

TEST(SessionMachine, NeverSendsMoreThanTheCredit) {
  Rig rig;
  rig.login();
  rig.read(2, 100'000);
  std::string got;
  std::uint64_t granted = 100'000;
  std::mt19937 random(1);
  bool ended = false;
  while (!ended) {
    for (const pb::Envelope& e : rig.drain()) {
      if (e.body_case() == pb::Envelope::kData) {
        EXPECT_EQ(e.data().offset(), got.size());
        got += e.data().content();
      }
      ended = ended || e.body_case() == pb::Envelope::kEnd;
    }
    ASSERT_LE(got.size(), granted);
    ASSERT_TRUE(ended || got.size() == granted);  // and uses all of it
    std::uint64_t more = 1 + random() % 300'000;
    granted += more;
    pb::Envelope e;
    e.mutable_credit()->set_bytes(more);
    rig.say(e, 2);
  }
  ASSERT_EQ(got.size(), kSize);
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], static_cast<char>(i * 31 >> 3)) << i;
  EXPECT_EQ(rig.closed, 1);
  EXPECT_FALSE(rig.machine.closing());
}

TEST(SessionMachine, ReaderThatTakesNothingHoldsLittle) {
  Rig rig;
  rig.login();
  for (std::uint64_t id = 2; id < 2 + session::kStreamsMax; ++id) rig.read(id, session::kCreditBytesMax);
  rig.work();
  std::size_t held = 0;
  while (auto m = rig.machine.produce()) held += m->size();
  EXPECT_LE(held, kOutboxBytesMax + session::kChunkBytes + 64 * 1024);
  rig.read(100, 1);
  EXPECT_EQ(rig.take().error().code(), pb::Error::LIMIT);
}

TEST(SessionMachine, StreamsShareTheConnection) {
  Rig rig;
  rig.login();
  rig.read(2, session::kCreditBytesMax);
  rig.read(3, session::kCreditBytesMax);
  std::map<std::uint64_t, int> first_ten;
  int n = 0;
  for (const pb::Envelope& e : rig.drain())
    if (e.body_case() == pb::Envelope::kData && n++ < 10) ++first_ten[e.id()];
  EXPECT_EQ(first_ten[2], 5);
  EXPECT_EQ(first_ten[3], 5);
}

TEST(SessionMachine, ClosedStreamLeavesNothingInTheWay) {
  Rig rig;
  rig.login();
  rig.read(2, session::kCreditBytesMax);
  rig.work();
  pb::Envelope e;
  e.mutable_close();
  rig.say(e, 2);
  rig.read(3, session::kCreditBytesMax, kSize - 5);
  std::string got;
  for (const pb::Envelope& m : rig.drain()) {
    EXPECT_TRUE(m.body_case() != pb::Envelope::kData || m.id() == 3);
    got += m.data().content();
  }
  EXPECT_EQ(got.size(), 5u);
  EXPECT_EQ(rig.closed, 2);
}

TEST(SessionMachine, RangesAndChangedFiles) {
  Rig rig;
  rig.login();
  rig.read(2, 10, kSize + 1);
  EXPECT_EQ(rig.drain().at(0).error().code(), pb::Error::BAD_RANGE);
  rig.read(3, 10, 5, UINT64_MAX);
  EXPECT_EQ(rig.drain().at(0).error().code(), pb::Error::BAD_RANGE);
  rig.read(4, 10, kSize);
  EXPECT_EQ(rig.drain().at(1).body_case(), pb::Envelope::kEnd);
  rig.read(5, 10);
  auto action = rig.machine.poll_action();
  ASSERT_TRUE(std::holds_alternative<OpenItem>(*action));
  rig.machine.item_opened(5, kSize, "video/mp4", "");
  EXPECT_EQ(rig.take().opened().size_bytes(), kSize);
  ASSERT_TRUE(rig.machine.poll_action());
  rig.machine.chunk_read(5, "", "the file became shorter while it was read");
  EXPECT_EQ(rig.take().error().code(), pb::Error::READ_FAILED);
  EXPECT_EQ(rig.machine.stream_count(), 0u);
}

TEST(SessionMachine, BreakingTheRulesEndsTheSession) {
  auto ends = [](auto act) {
    Rig rig;
    rig.login();
    act(rig);
    return rig.machine.closing();
  };
  EXPECT_TRUE(ends([](Rig& r) { r.machine.handle_message("\xff"); }));
  EXPECT_TRUE(ends([](Rig& r) { r.machine.handle_message(std::string(session::kRequestBytesMax + 1, ' ')); }));
  EXPECT_TRUE(ends([](Rig& r) { r.say(pb::Envelope(), 9); }));
  EXPECT_TRUE(ends([](Rig& r) { r.read(2, session::kCreditBytesMax + 1); }));
  EXPECT_TRUE(ends([](Rig& r) { r.read(2, 1); r.read(2, 1); }));
  EXPECT_TRUE(ends([](Rig& r) {
    r.read(2, 1);
    pb::Envelope e;
    e.mutable_credit()->set_bytes(UINT64_MAX);
    r.say(e, 2);
  }));
  EXPECT_TRUE(ends([](Rig& r) {
    pb::Envelope e;
    e.set_version(2);
    e.set_id(4);
    e.mutable_list();
    r.machine.handle_message(e.SerializeAsString());
  }));
  EXPECT_FALSE(ends([](Rig& r) { r.read(2, 1); }));
}

TEST(SessionMachine, SurvivesRandomAndDamagedMessages) {
  std::mt19937 random(7);
  for (int round = 0; round < 2000; ++round) {
    Rig rig;
    rig.login();
    rig.read(2, 1000);
    pb::Envelope e;
    e.set_version(1);
    e.set_id(3);
    e.mutable_read()->set_item_id("item1");
    e.mutable_read()->set_credit_bytes(random());
    std::string bytes = e.SerializeAsString();
    for (int i = 0; i < 3; ++i) bytes[random() % bytes.size()] ^= static_cast<char>(1u << random() % 8);
    bytes.resize(random() % (bytes.size() + 1));
    rig.machine.handle_message(bytes);
    rig.drain();
  }
}

}  // namespace
}  // namespace porthole::serve
