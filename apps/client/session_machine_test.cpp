// What a media server may answer, and what it may not.
#include "client/session_machine.h"

#include <gtest/gtest.h>
#include <session.pb.h>

#include <functional>

#include "client/limits.h"
#include "session/limits.h"

namespace porthole::client {
namespace {

namespace pb = session::pb;

class SessionMachineTest : public ::testing::Test {
 protected:
  pb::Envelope sent() {
    pb::Envelope e;
    std::optional<std::string> message = machine.produce();
    EXPECT_TRUE(message && e.ParseFromString(*message));
    EXPECT_EQ(e.version(), session::kProtocolVersion);
    return e;
  }
  std::uint64_t answer(std::uint64_t id, const std::function<void(pb::Envelope&)>& fill) {
    pb::Envelope e;
    e.set_version(session::kProtocolVersion);
    e.set_id(id);
    fill(e);
    return machine.handle_message(e.SerializeAsString());
  }
  std::uint64_t data(std::uint64_t id, std::uint64_t offset, std::size_t size) {
    return answer(id, [&](pb::Envelope& e) {
      e.mutable_data()->set_offset(offset);
      e.mutable_data()->set_content(std::string(size, 'x'));
    });
  }
  std::uint64_t range(std::uint64_t offset, std::uint64_t length, std::uint64_t size) {
    const std::uint64_t id = machine.ask_range("film", offset, length);
    sent();
    answer(id, [&](pb::Envelope& e) {
      e.mutable_opened()->set_size_bytes(size);
      e.mutable_opened()->set_offset(offset);
      e.mutable_opened()->set_length(length == 0 ? size - offset : length);
    });
    machine.opened(id);
    return id;
  }
  template <class F>
  Failure failure(F f) {
    try {
      f();
    } catch (const ClientError& e) {
      said = e.what();
      return e.failure();
    }
    ADD_FAILURE() << "it did not fail";
    return Failure::kFailed;
  }
  SessionMachine machine{"home"};
  std::string said;
};

TEST_F(SessionMachineTest, AnswersBelongToTheirRequests) {
  const std::uint64_t ping = machine.ask_ping(), poster = machine.ask_poster("film");
  EXPECT_EQ(sent().id(), ping);
  EXPECT_EQ(sent().poster_request().item_id(), "film");
  EXPECT_FALSE(machine.produce());
  EXPECT_FALSE(machine.has_answer(ping));
  EXPECT_EQ(answer(poster, [](pb::Envelope& e) { e.mutable_poster()->set_image("jpeg"); }), poster);
  EXPECT_FALSE(machine.has_answer(ping));
  ASSERT_TRUE(machine.has_answer(poster));
  EXPECT_EQ(machine.poster(poster).image, "jpeg");
  EXPECT_EQ(answer(99, [](pb::Envelope& e) { e.mutable_pong(); }), 0u) << "nobody asked";
  machine.forget(poster);
  EXPECT_EQ(answer(poster, [](pb::Envelope& e) { e.mutable_poster(); }), 0u);
  EXPECT_EQ(answer(ping, [](pb::Envelope& e) { e.mutable_poster(); }), ping);
  EXPECT_EQ(failure([&] { machine.pong(ping); }), Failure::kProtocol);
  EXPECT_FALSE(machine.ended());
}

TEST_F(SessionMachineTest, RefusalsKeepTheServersWordsWithoutWhatATerminalObeys) {
  const std::uint64_t login = machine.ask_login({"word", "id", std::string(1000, 'n'), true, false});
  EXPECT_EQ(sent().login().device_name().size(), kDeviceNameBytesMax);
  answer(login, [](pb::Envelope& e) { e.mutable_login_response()->set_error("no\x1b[2J " + std::string(5000, 'o')); });
  EXPECT_EQ(failure([&] { machine.login(login); }), Failure::kWrongPassword);
  EXPECT_EQ(said.find('\x1b'), std::string::npos);
  EXPECT_LT(said.size(), session::kTextBytesMax + 20);
  const std::uint64_t again = machine.ask_login({});
  answer(again, [](pb::Envelope& e) { e.mutable_login_response()->set_retry_after_s(9); });
  EXPECT_EQ(failure([&] { machine.login(again); }), Failure::kRefused);
  const std::uint64_t poster = machine.ask_poster("x");
  answer(poster, [](pb::Envelope& e) { e.mutable_error()->set_code(pb::Error::NOT_FOUND); });
  EXPECT_EQ(failure([&] { machine.poster(poster); }), Failure::kNotFound);
  EXPECT_EQ(said, "home refused it and does not say why");
  EXPECT_FALSE(machine.ended());
}

TEST_F(SessionMachineTest, MoreAnswersThanRequestsEndTheSession) {
  const std::uint64_t ping = machine.ask_ping();
  auto pong = [](pb::Envelope& e) { e.mutable_pong(); };
  EXPECT_EQ(answer(ping, pong), ping);
  EXPECT_EQ(answer(ping, pong), 0u);
  EXPECT_TRUE(machine.ended());
  EXPECT_TRUE(machine.has_answer(ping));
  machine.pong(ping);  // what came before the end is still an answer
  EXPECT_EQ(failure([&] { machine.pong(ping); }), Failure::kProtocol);
  EXPECT_EQ(failure([&] { machine.ask_ping(); }), Failure::kProtocol);
}

TEST_F(SessionMachineTest, NoMoreBytesThanGranted) {
  const std::uint64_t size = 4 * kWindowBytes, chunk = session::kChunkBytes;
  const std::uint64_t id = range(0, 0, size);
  std::uint64_t at = 0, granted = kWindowBytes;
  for (; at < granted; at += chunk) EXPECT_EQ(data(id, at, chunk), id);
  for (std::uint64_t taken = 0; taken < kWindowBytes / 4; taken += chunk) EXPECT_EQ(machine.data(id).size(), chunk);
  pb::Envelope credit = sent();
  EXPECT_EQ(credit.id(), id);
  EXPECT_EQ(credit.credit().bytes(), kWindowBytes / 4);
  for (granted += credit.credit().bytes(); at < granted; at += chunk) EXPECT_EQ(data(id, at, chunk), id);
  EXPECT_FALSE(machine.ended());
  EXPECT_EQ(data(id, at, 1), 0u);
  EXPECT_TRUE(machine.ended());
}

TEST_F(SessionMachineTest, BytesThatWereNotAskedForAreNotHandedOut) {
  struct {
    std::uint64_t offset;
    std::size_t size;
  } kWrong[] = {{0, 10}, {101, 10}, {100, 0}, {100, 51}};
  for (const auto& w : kWrong) {
    const std::uint64_t id = range(100, 50, 1000);
    data(id, w.offset, w.size);
    EXPECT_EQ(failure([&] { machine.data(id); }), Failure::kProtocol) << w.offset << " " << w.size;
    machine.forget(id);
    EXPECT_TRUE(sent().has_close());
  }
  const std::uint64_t short_one = range(100, 50, 1000);
  data(short_one, 100, 49);
  EXPECT_EQ(machine.data(short_one).size(), 49u);
  answer(short_one, [](pb::Envelope& e) { e.mutable_end(); });
  EXPECT_EQ(failure([&] { machine.data(short_one); }), Failure::kProtocol);
  const std::uint64_t whole = range(100, 50, 1000);
  data(whole, 100, 50);
  answer(whole, [](pb::Envelope& e) { e.mutable_end(); });
  EXPECT_EQ(machine.data(whole).size(), 50u);
  EXPECT_EQ(machine.data(whole), "");
  machine.forget(whole);
  EXPECT_FALSE(machine.produce()) << "the server has forgotten it by itself";
}

TEST_F(SessionMachineTest, AnotherRangeThanAskedForIsRefused) {
  struct {
    std::uint64_t length, size, offset, opened;
  } kWrong[] = {{0, 1000, 99, 900}, {0, 99, 100, 0}, {0, 1000, 100, 899}, {50, 1000, 100, 51}, {50, 120, 100, 50}, {50, 1000, 100, ~0ull}};
  for (const auto& w : kWrong) {
    const std::uint64_t id = machine.ask_range("film", 100, w.length);
    answer(id, [&](pb::Envelope& e) {
      e.mutable_opened()->set_size_bytes(w.size);
      e.mutable_opened()->set_offset(w.offset);
      e.mutable_opened()->set_length(w.opened);
    });
    EXPECT_EQ(failure([&] { machine.opened(id); }), Failure::kProtocol) << w.size << " " << w.opened;
  }
}

TEST_F(SessionMachineTest, ALibraryThatChangesBetweenPagesIsListedAnewButNotForEver) {
  auto page = [&](Listing& l, std::uint64_t revision, int items, std::uint32_t total) {
    const std::uint64_t id = machine.ask_page(l);
    EXPECT_EQ(sent().list().offset(), l.items.size());
    answer(id, [&](pb::Envelope& e) {
      for (int i = 0; i < items; ++i) e.mutable_list_response()->add_items()->set_id(std::to_string(i));
      e.mutable_list_response()->set_revision(revision);
      e.mutable_list_response()->set_total(total);
    });
    return machine.page(id, l);
  };
  Listing l;
  EXPECT_FALSE(page(l, 1, 3, 5));
  EXPECT_FALSE(page(l, 2, 2, 5));
  EXPECT_TRUE(l.items.empty());
  EXPECT_FALSE(page(l, 2, 3, 5));
  EXPECT_TRUE(page(l, 2, 2, 5));
  EXPECT_EQ(l.items.size(), 5u);
  Listing empty;
  EXPECT_TRUE(page(empty, 1, 0, 9)) << "a total that is not kept";
  Listing restless;
  auto for_ever = [&] {
    for (std::uint64_t revision = 0; revision < 1000; ++revision) page(restless, revision, 1, 9);
  };
  EXPECT_EQ(failure(for_ever), Failure::kFailed);
  Listing huge;
  EXPECT_EQ(failure([&] { page(huge, 1, 1, kListItemsMax + 1); }), Failure::kProtocol);
}

TEST_F(SessionMachineTest, TheEndHasTheBestReasonThereIs) {
  machine.handle_message("\xff nonsense");
  EXPECT_EQ(failure([&] { machine.ask_ping(); }), Failure::kProtocol);
  SessionMachine lost("home"), revoked("home"), told("home");
  lost.handle_loss("it was closed at the other end");
  EXPECT_EQ(lost.reason(), "the connection to home was lost: it was closed at the other end");
  pb::Envelope e;
  e.set_version(session::kProtocolVersion);
  e.mutable_notice()->set_kind(pb::Notice::REVOKED);
  revoked.handle_message(e.SerializeAsString());
  EXPECT_FALSE(revoked.ended());
  revoked.handle_loss("reset");
  EXPECT_EQ(failure([&] { revoked.ask_ping(); }), Failure::kRevoked);
  e.mutable_error()->set_message("go\naway");
  told.handle_message(e.SerializeAsString());
  EXPECT_EQ(told.reason(), "home ended the session: go?away");
  told.handle_message(e.SerializeAsString());
}

}  // namespace
}  // namespace porthole::client
