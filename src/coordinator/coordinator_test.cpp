#include "coordinator/coordinator.h"

#include "coordinator/coordinator_test_world.h"

namespace porthole::coordinator {
namespace {

using test::Client;
using test::World;

// Everybody's bytes, and time.
void run(World& world, std::initializer_list<Client*> clients, Duration duration) {
  Instant end = world.clock.now + duration;
  for (;;) {
    for (Client* c : clients) c->pump();
    Instant next = std::max(world.coordinator->next_timeout().latest, world.clock.now);
    if (next > end) break;
    if (next == world.clock.now) next = next + 1ms;
    if (next > end) break;
    world.step(next - world.clock.now);
    world.coordinator->handle_timeout(world.clock);
  }
  world.step(end - world.clock.now);
  for (Client* c : clients) c->pump();
}

std::unique_ptr<Client> joined(World& world, const std::string& account, const std::string& hostname, bool polls = true) {
  auto c = std::make_unique<Client>(world, hostname);
  EXPECT_TRUE(c->connect());
  auto r = c->join(world.key(account));
  EXPECT_EQ(r.error, "");
  EXPECT_TRUE(r.machine_authorized);
  if (polls) {
    c->poll();
    EXPECT_TRUE(c->polling());
    c->report_home(900);
  }
  return c;
}

TEST(Coordinator, FirstMapIsComplete) {
  World w;
  w.account("smith");
  auto c = joined(w, "smith", "Curtis's iPad");
  ASSERT_EQ(c->maps.size(), 1u);
  const auto& m = c->maps[0];
  ASSERT_TRUE(m.node);
  EXPECT_EQ(m.node->name, "curtis-s-ipad.smith.tail.example.");
  EXPECT_EQ(m.node->key, c->node.public_key());
  EXPECT_TRUE(m.node->machine_authorized);
  EXPECT_FALSE(m.node->expired);
  EXPECT_FALSE(m.node->stable_id.empty());
  EXPECT_TRUE(m.node->has_capability("https://tailscale.com/cap/file-sharing"));
  ASSERT_EQ(m.node->addresses.size(), 2u);
  EXPECT_TRUE(m.node->addresses[0].address.is_tailnet());
  EXPECT_TRUE(m.node->addresses[1].address.is_tailnet());
  EXPECT_EQ(m.node->allowed_ips, m.node->addresses);
  EXPECT_TRUE(m.peers.empty());
  ASSERT_TRUE(m.derp_map && m.derp_map->regions);
  EXPECT_TRUE(m.derp_map->regions->contains(900));
  ASSERT_TRUE(m.packet_filters);
  EXPECT_EQ(m.packet_filters->at("base")->size(), 1u);
  ASSERT_EQ(m.user_profiles.size(), 1u);
  EXPECT_EQ(m.user_profiles[0].id, m.node->user);
  EXPECT_EQ(m.user_profiles[0].login_name, "smith@tail.example");
  ASSERT_TRUE(m.dns_config);
  EXPECT_TRUE(m.dns_config->proxied);
  EXPECT_EQ(m.dns_config->domains, std::vector<std::string>{"smith.tail.example"});
  EXPECT_EQ(m.domain, "smith.tail.example");
  ASSERT_TRUE(m.debug);
  EXPECT_TRUE(m.debug->disable_log_tail);
  EXPECT_TRUE(m.control_time);
}

TEST(Coordinator, AccountsDoNotSeeEachOther) {
  World w;
  w.account("smith");
  w.account("jones");
  auto a1 = joined(w, "smith", "one");
  auto a2 = joined(w, "smith", "two");
  auto b1 = joined(w, "jones", "one");
  auto b2 = joined(w, "jones", "two");
  run(w, {a1.get(), a2.get(), b1.get(), b2.get()}, 1s);
  EXPECT_EQ(a1->peer_names(), std::vector<std::string>{"two.smith.tail.example."});
  EXPECT_EQ(a2->peer_names(), std::vector<std::string>{"one.smith.tail.example."});
  EXPECT_EQ(b1->peer_names(), std::vector<std::string>{"two.jones.tail.example."});
  EXPECT_EQ(b2->peer_names(), std::vector<std::string>{"one.jones.tail.example."});
  // A change in one account makes no message in the other.
  std::size_t before = b1->maps.size() + b2->maps.size();
  auto r = a1->map_request();
  r.endpoints = {{IpAddress::v4(198, 51, 100, 1), 41641}};
  EXPECT_EQ(a1->lite(r).status, 200);
  run(w, {a1.get(), a2.get(), b1.get(), b2.get()}, 1s);
  EXPECT_EQ(b1->maps.size() + b2->maps.size(), before);
  EXPECT_EQ(a2->peers().begin()->second.endpoints.size(), 1u);
}

TEST(Coordinator, ANewNodeIsToldToItsPeersWhenTheyCanReachIt) {
  World w;
  w.account("smith");
  auto a = joined(w, "smith", "a");
  Client b(w, "b"), silent(w, "silent"), late(w, "late");
  ASSERT_TRUE(b.connect());
  ASSERT_EQ(b.join(w.key("smith")).error, "");
  b.poll();
  EXPECT_EQ(b.peer_names(), std::vector<std::string>{"a.smith.tail.example."});
  run(w, {a.get(), &b}, 300ms);
  EXPECT_TRUE(a->peers().empty());
  ASSERT_TRUE(late.connect());
  ASSERT_EQ(late.join(w.key("smith")).error, "");
  late.poll();   // its first map does not have b either
  EXPECT_EQ(late.peer_names(), std::vector<std::string>{"a.smith.tail.example."});
  b.report_home(900);
  a->pump();
  ASSERT_EQ(a->peer_names(), std::vector<std::string>{"b.smith.tail.example."});
  EXPECT_EQ(a->peers().begin()->second.home_derp, 900);
  EXPECT_EQ(a->peers().begin()->second.online, true);
  EXPECT_EQ(a->peers().begin()->second.disco_key, b.disco);
  // One that never says how it is reached is told as well, later.
  ASSERT_TRUE(silent.connect());
  ASSERT_EQ(silent.join(w.key("smith")).error, "");
  run(w, {a.get(), &b, &late}, 500ms);
  EXPECT_EQ(a->peers().size(), 1u);
  run(w, {a.get(), &b, &late}, 600ms);
  EXPECT_EQ(a->peers().size(), 3u);
  EXPECT_EQ(b.peers().size(), 3u);
  // Removed before anybody heard of it.
  Client gone(w, "gone");
  ASSERT_TRUE(gone.connect());
  ASSERT_EQ(gone.join(w.key("smith")).error, "");
  ASSERT_TRUE(w.directory->revoke(w.clock, "smith", std::to_string(w.directory->find_by_node_key(gone.node.public_key())->record.id)).ok());
  run(w, {a.get(), &b, &late}, 2s);
  EXPECT_EQ(a->peers().size(), 3u);
}

TEST(Coordinator, ChangesTravelAsPatchesAndAtOnce) {
  World w;
  w.account("smith");
  auto a = joined(w, "smith", "a");
  auto b = joined(w, "smith", "b");
  run(w, {a.get(), b.get()}, 1s);
  std::size_t before = b->maps.size();
  auto r = a->map_request();
  r.endpoints = {{IpAddress::v4(198, 51, 100, 1), 41641}};
  r.hostinfo->net_info->preferred_derp = 901;
  EXPECT_EQ(a->lite(r).status, 200);
  b->pump();  // no time has passed
  ASSERT_EQ(b->maps.size(), before + 1);
  ASSERT_EQ(b->maps.back().peers_changed_patch.size(), 1u);
  EXPECT_EQ(b->maps.back().peers_changed_patch[0].derp_region, 901);
  EXPECT_TRUE(b->maps.back().peers_changed.empty());
  // The same state again is no change.
  EXPECT_EQ(a->lite(r).status, 200);
  run(w, {a.get(), b.get()}, 1s);
  EXPECT_EQ(b->maps.size(), before + 1);
  // Another disco key, many times within the spacing: two messages at the most.
  for (int i = 0; i < 20; ++i) {
    a->disco = crypto::DiscoPrivate::generate(w.rng).public_key();
    r.disco_key = a->disco;
    EXPECT_EQ(a->lite(r).status, 200);
    b->pump();
  }
  run(w, {a.get(), b.get()}, 50ms);
  EXPECT_LE(b->maps.size(), before + 3);
  EXPECT_EQ(b->peers().begin()->second.disco_key, a->disco);
}

TEST(Coordinator, RenameReachesPeersAndSelf) {
  World w;
  w.account("smith");
  auto a = joined(w, "smith", "a");
  auto b = joined(w, "smith", "b");
  auto r = a->map_request();
  r.hostinfo->hostname = "b";  // taken
  EXPECT_EQ(a->lite(r).status, 200);
  run(w, {a.get(), b.get()}, 1s);
  EXPECT_EQ(b->peer_names(), std::vector<std::string>{"b-1.smith.tail.example."});
  ASSERT_TRUE(a->maps.back().node);
  EXPECT_EQ(a->maps.back().node->name, "b-1.smith.tail.example.");
}

TEST(Coordinator, OnlineHasAGrace) {
  World w;
  w.account("smith");
  auto a = joined(w, "smith", "a");
  auto b = joined(w, "smith", "b");
  run(w, {a.get(), b.get()}, 1s);
  EXPECT_EQ(b->peers().begin()->second.online, true);
  a->h2->cancel(a->poll_stream);
  run(w, {a.get(), b.get()}, 5s);
  EXPECT_EQ(b->peers().begin()->second.online, true);
  a->poll();  // back in time: nobody notices
  std::size_t before = b->maps.size();
  run(w, {a.get(), b.get()}, 30s);
  EXPECT_EQ(b->maps.size(), before);
  w.coordinator->close(w.clock, a->session);
  run(w, {b.get()}, 9s);
  EXPECT_EQ(b->peers().begin()->second.online, true);
  run(w, {b.get()}, 2s);
  EXPECT_EQ(b->peers().begin()->second.online, false);
  EXPECT_TRUE(b->maps.back().peers_changed_patch.at(0).last_seen);
}

TEST(Coordinator, KeepAlivesComeInTime) {
  World w;
  w.account("smith");
  auto a = joined(w, "smith", "a");
  a->zstd = true;
  a->poll();  // replaces the stream
  run(w, {a.get()}, 10min);
  EXPECT_GE(a->keep_alives, 10);
  EXPECT_LE(a->keep_alives, 12);
  EXPECT_EQ(a->maps.size(), 1u);
}

TEST(Coordinator, NewerStreamReplacesTheOlder) {
  World w;
  w.account("smith");
  auto a = joined(w, "smith", "a");
  auto old = a->poll_stream;
  a->poll();
  EXPECT_TRUE(a->answers[old].closed);
  EXPECT_EQ(a->answers[old].error_code, ts2021::kH2NoError);
  EXPECT_TRUE(a->polling());
  EXPECT_EQ(w.coordinator->stream_count(), 1u);
}

TEST(Coordinator, RevocationCutsEverything) {
  World w;
  w.account("smith");
  auto a = std::make_unique<Client>(w, "a");
  ASSERT_TRUE(a->connect());
  auto key = w.directory->device_key(w.clock, "smith", "tv", false);
  ASSERT_TRUE(key.ok());
  std::string text(key->key.reveal());
  EXPECT_EQ(a->join(text).error, "");
  a->poll();
  a->report_home(900);
  auto b = joined(w, "smith", "b");
  run(w, {a.get(), b.get()}, 1s);
  NodePublic node_key = a->node.public_key();
  EXPECT_TRUE(w.coordinator->admits(w.clock.wall, node_key));
  NodeId id = b->peers().begin()->first;

  ASSERT_TRUE(w.directory->revoke(w.clock, "smith", "tv").ok());
  a->pump();
  b->pump();
  EXPECT_TRUE(a->answers[a->poll_stream].closed);
  // Its last message makes it ask for a login, whatever its clock says.
  ASSERT_TRUE(a->maps.back().node);
  EXPECT_EQ(a->maps.back().node->id, id);
  EXPECT_EQ(a->maps.back().node->key, node_key);
  EXPECT_TRUE(a->maps.back().node->expired);
  EXPECT_FALSE(a->maps.back().node->machine_authorized);
  ASSERT_TRUE(a->maps.back().node->key_expiry);
  EXPECT_LT(*a->maps.back().node->key_expiry, WallTime::from_unix_s(1'000'000'000));
  EXPECT_EQ(b->maps.back().peers_removed, std::vector<NodeId>{id});
  EXPECT_TRUE(b->peers().empty());
  EXPECT_FALSE(w.coordinator->admits(w.clock.wall, node_key));
  auto event = w.coordinator->poll_event();
  ASSERT_TRUE(event);
  EXPECT_EQ(std::get<NodeKeyRetired>(*event).key, node_key);

  a->poll();
  EXPECT_EQ(a->answers[a->poll_stream].status, 404);
  EXPECT_EQ(a->answers[a->poll_stream].body, "node not found\n");
  EXPECT_EQ(a->lite(a->map_request()).status, 404);
  EXPECT_EQ(a->join(text).error, "authkey revoked");
  // Even after a restart, and its next key is another one.
  w.open();
  ASSERT_TRUE(a->connect());
  EXPECT_EQ(a->join(text).error, "authkey revoked");
  auto next = w.directory->device_key(w.clock, "smith", "tv", false);
  ASSERT_TRUE(next.ok());
  EXPECT_TRUE(next->created);
  EXPECT_NE(std::string(next->key.reveal()), text);
  EXPECT_EQ(a->join(std::string(next->key.reveal())).error, "");
}

TEST(Coordinator, RemovedWhileAwayIsToldOncePerSession) {
  World w;
  w.account("smith");
  auto a = joined(w, "smith", "a");
  auto b = joined(w, "smith", "b");
  NodeId id = a->maps[0].node->id;
  w.coordinator->close(w.clock, a->session);
  ASSERT_TRUE(w.directory->revoke(w.clock, "smith", std::to_string(id)).ok());
  w.open();  // nobody remembers it
  for (bool zstd : {false, true}) {
    ASSERT_TRUE(a->connect());
    a->zstd = zstd;
    EXPECT_EQ(a->lite(a->map_request()).status, 404);
    a->poll();
    EXPECT_EQ(a->answers[a->poll_stream].status, 200);
    EXPECT_TRUE(a->answers[a->poll_stream].closed);
    ASSERT_EQ(a->maps.size(), 1u);
    ASSERT_TRUE(a->maps[0].node);
    EXPECT_EQ(a->maps[0].node->key, a->node.public_key());
    EXPECT_FALSE(a->maps[0].node->stable_id.empty());
    EXPECT_TRUE(a->maps[0].node->expired);
    ASSERT_TRUE(a->maps[0].node->key_expiry);
    EXPECT_LT(*a->maps[0].node->key_expiry, WallTime::from_unix_s(1'000'000'000));
    EXPECT_TRUE(a->maps[0].peers.empty());
    EXPECT_TRUE(a->maps[0].derp_map && a->maps[0].derp_map->regions && a->maps[0].derp_map->regions->contains(900));
    a->poll();
    EXPECT_EQ(a->answers[a->poll_stream].status, 404);
  }
  // Whose key it is does not matter as long as it is nobody else's.
  a->node = b->node.duplicate();
  ASSERT_TRUE(a->connect());
  a->poll();
  EXPECT_EQ(a->answers[a->poll_stream].status, 404);
}

TEST(Coordinator, KeyRules) {
  World w;
  w.account("smith");
  Client c(w);
  ASSERT_TRUE(c.connect());
  EXPECT_EQ(c.join("hskey-auth-nonsense").error, "invalid pre auth key");
  std::string good = w.key("smith");
  std::string wrong = good;
  wrong.back() = wrong.back() == '0' ? '1' : '0';
  EXPECT_EQ(c.join(wrong).error, "invalid pre auth key");
  std::string late = w.key("smith", {"", false, false, Duration(1min)});
  w.step(61s);
  EXPECT_EQ(c.join(late).error, "authkey expired");
  auto tagged = c.register_request(good);
  tagged.hostinfo->request_tags = {"tag:server"};
  EXPECT_EQ(c.enrol(tagged).error, "requested tags [tag:server] are invalid or not permitted");
  EXPECT_EQ(c.join(good).error, "");
  // A restart of the same node may still show its spent key; another machine may not.
  EXPECT_EQ(c.join(good).error, "");
  Client other(w);
  ASSERT_TRUE(other.connect());
  EXPECT_EQ(other.join(good).error, "authkey already used");
  std::string many = w.key("smith", {"", true, false, std::nullopt});
  EXPECT_EQ(other.join(many).error, "");
  Client third(w);
  ASSERT_TRUE(third.connect());
  EXPECT_EQ(third.join(many).error, "");
  EXPECT_EQ(w.directory->node_count(), 3u);
}

TEST(Coordinator, MachineKeyIsChecked) {
  World w;
  w.account("smith");
  auto a = joined(w, "smith", "a");
  Client thief(w);
  ASSERT_TRUE(thief.connect());
  thief.node = a->node.duplicate();
  EXPECT_EQ(thief.join("").error, "node key already in use by another machine");
  EXPECT_EQ(thief.join(w.key("smith")).error, "node key already in use by another machine");
  auto answer = thief.lite(thief.map_request());
  EXPECT_EQ(answer.status, 404);
  EXPECT_EQ(answer.body, "node key in request does not match the one associated with this machine key\n");
}

TEST(Coordinator, RotationKeepsNodeAndAddresses) {
  World w;
  w.account("smith");
  auto a = joined(w, "smith", "a");
  auto b = joined(w, "smith", "b");
  run(w, {a.get(), b.get()}, 1s);
  auto before = b->peers();
  auto addresses = before.begin()->second.addresses;
  NodePublic old = a->node.public_key();
  a->node = crypto::NodePrivate::generate(w.rng);
  auto r = a->register_request(w.key("smith"));
  r.old_node_key = old;
  EXPECT_EQ(a->enrol(r).error, "");
  run(w, {a.get(), b.get()}, 1s);
  auto after = b->peers();
  ASSERT_EQ(after.size(), 1u);
  EXPECT_EQ(after.begin()->first, before.begin()->first);
  EXPECT_EQ(after.begin()->second.key, a->node.public_key());
  EXPECT_EQ(after.begin()->second.addresses, addresses);
  EXPECT_FALSE(w.coordinator->admits(w.clock.wall, old));
  EXPECT_TRUE(w.coordinator->admits(w.clock.wall, a->node.public_key()));
}

TEST(Coordinator, LogoutExpiresAndComesBackWithANewKey) {
  World w;
  w.account("smith");
  auto a = joined(w, "smith", "a");
  auto b = joined(w, "smith", "b");
  run(w, {a.get(), b.get()}, 1s);
  auto r = a->register_request("");
  r.expiry = WallTime::from_unix_s(123);
  auto answer = a->enrol(r);
  EXPECT_EQ(answer.error, "");
  EXPECT_TRUE(answer.node_key_expired);
  run(w, {a.get(), b.get()}, 1s);
  EXPECT_TRUE(b->peers().begin()->second.expired);
  EXPECT_EQ(b->peers().begin()->second.online, false);
  EXPECT_TRUE(b->peers().begin()->second.last_seen);
  EXPECT_FALSE(w.directory->devices_list(w.clock, "smith")->front().online);
  EXPECT_EQ(w.directory->health().online, 1u);
  EXPECT_TRUE(a->maps.back().node && a->maps.back().node->expired);
  EXPECT_FALSE(w.coordinator->admits(w.clock.wall, a->node.public_key()));
  answer = a->join("");
  EXPECT_TRUE(answer.node_key_expired);
  EXPECT_FALSE(answer.machine_authorized);
  NodePublic old = a->node.public_key();
  a->node = crypto::NodePrivate::generate(w.rng);
  r = a->register_request(w.key("smith"));
  r.old_node_key = old;
  EXPECT_EQ(a->enrol(r).error, "");
  run(w, {a.get(), b.get()}, 1s);
  EXPECT_FALSE(b->peers().begin()->second.expired);
  EXPECT_EQ(b->peers().begin()->second.online, true);
  EXPECT_EQ(b->peers().size(), 1u);
  EXPECT_EQ(w.directory->health().online, 2u);
}

TEST(Coordinator, ExpiryIsNoticedOnTime) {
  World w;
  w.account("smith");
  Client a(w, "a");
  ASSERT_TRUE(a.connect());
  auto r = a.register_request(w.key("smith"));
  r.expiry = w.clock.wall + 2h;
  EXPECT_EQ(a.enrol(r).error, "");
  a.poll();
  auto b = joined(w, "smith", "b");
  run(w, {&a, b.get()}, 1h + 59min);
  EXPECT_FALSE(b->peers().begin()->second.expired);
  EXPECT_EQ(b->peers().begin()->second.online, true);
  run(w, {&a, b.get()}, 2min);
  EXPECT_TRUE(b->peers().begin()->second.expired);
  EXPECT_TRUE(a.polling());
  EXPECT_EQ(b->peers().begin()->second.online, false);
  EXPECT_EQ(w.directory->health().online, 1u);
  EXPECT_EQ(w.store.load()->nodes.front().last_seen, b->peers().begin()->second.last_seen);
  a.poll();  // a stream of an expired node makes it no more online
  run(w, {&a, b.get()}, 1s);
  EXPECT_EQ(b->peers().begin()->second.online, false);
  EXPECT_FALSE(b->peers().begin()->second.machine_authorized);
  auto extend = a.register_request("");
  extend.expiry = w.clock.wall + 24h;
  EXPECT_TRUE(a.enrol(extend).node_key_expired);
}

TEST(Coordinator, ExtendingAKeyIsRefused) {
  World w;
  w.account("smith");
  auto a = joined(w, "smith", "a");
  auto r = a->register_request("");
  r.expiry = w.clock.wall + 24h;
  EXPECT_EQ(a->enrol(r).error, "extending key is not allowed");
}

TEST(Coordinator, EphemeralNodesGoAway) {
  World w;
  w.account("smith");
  auto b = joined(w, "smith", "b");
  Client a(w, "a");
  ASSERT_TRUE(a.connect());
  EXPECT_EQ(a.join(w.key("smith", {"", false, true, std::nullopt})).error, "");
  a.poll();
  run(w, {&a, b.get()}, 10min);
  EXPECT_EQ(b->peers().size(), 1u);
  w.coordinator->close(w.clock, a.session);
  run(w, {b.get()}, 119s);
  EXPECT_EQ(b->peers().size(), 1u);
  run(w, {b.get()}, 2s);
  EXPECT_TRUE(b->peers().empty());
  EXPECT_EQ(w.directory->node_count(), 1u);
  // Logging out deletes at once.
  Client c(w, "c");
  ASSERT_TRUE(c.connect());
  EXPECT_EQ(c.join(w.key("smith", {"", false, true, std::nullopt})).error, "");
  auto r = c.register_request("");
  r.expiry = WallTime::from_unix_s(123);
  auto answer = c.enrol(r);
  EXPECT_TRUE(answer.node_key_expired);
  EXPECT_FALSE(answer.machine_authorized);
  EXPECT_EQ(w.directory->node_count(), 1u);
}

TEST(Coordinator, InteractiveLoginWithFollowup) {
  World w;
  w.account("smith");
  Client a(w, "laptop");
  ASSERT_TRUE(a.connect());
  auto first = a.join("");
  EXPECT_FALSE(first.machine_authorized);
  ASSERT_TRUE(first.auth_url.starts_with("https://remote.example/register/")) << first.auth_url;
  std::string id = first.auth_url.substr(first.auth_url.rfind('/') + 1);
  EXPECT_EQ(w.directory->pending(w.clock, id)->hostname, "laptop");

  auto r = a.register_request("");
  r.followup = first.auth_url;
  auto stream = a.post_register(r);
  run(w, {&a}, 5min);
  EXPECT_EQ(a.answers[stream].status, 0);
  EXPECT_FALSE(w.directory->approve(w.clock, "jones", id).ok());
  auto device = w.directory->approve(w.clock, "smith", id);
  ASSERT_TRUE(device.ok());
  a.pump();
  ASSERT_EQ(a.answers[stream].status, 200);
  auto answer = ts2021::parse_register_response(as_bytes(a.answers[stream].body));
  ASSERT_TRUE(answer.ok());
  EXPECT_TRUE(answer->machine_authorized);
  EXPECT_EQ(answer->login.login_name, "smith@tail.example");
  EXPECT_FALSE(w.directory->approve(w.clock, "smith", id).ok());
  a.poll();
  EXPECT_TRUE(a.polling());

  // Too old: the waiter gets a new URL.
  Client b(w, "phone");
  ASSERT_TRUE(b.connect());
  auto url = b.join("").auth_url;
  r = b.register_request("");
  r.followup = url;
  stream = b.post_register(r);
  run(w, {&b}, 16min);
  ASSERT_EQ(b.answers[stream].status, 200);
  answer = ts2021::parse_register_response(as_bytes(b.answers[stream].body));
  ASSERT_TRUE(answer.ok());
  EXPECT_FALSE(answer->auth_url.empty());
  EXPECT_NE(answer->auth_url, url);
}

// A login costs the coordinator little while it waits, whatever its client sends.
TEST(Coordinator, WaitingLoginsAreBounded) {
  World w;
  w.account("smith");
  Client first(w, "laptop");
  ASSERT_TRUE(first.connect());
  auto url = first.join("").auth_url;
  auto r = first.register_request("");
  r.followup = url;
  auto asked = first.post_register(r);
  auto again = first.post_register(r);
  first.pump();
  EXPECT_EQ(first.answers[asked].status, 0);
  EXPECT_EQ(first.answers[again].status, 429);
  // The wait is over when the client says so, and may begin anew.
  first.h2->cancel(asked);
  asked = first.post_register(r);
  first.pump();
  EXPECT_EQ(first.answers[asked].status, 0);

  // The same machine dials again and again, and its old sessions have not been found dead.
  std::vector<std::unique_ptr<Client>> later;
  std::vector<ts2021::H2StreamId> waits;
  for (std::size_t i = 0; i < kWaitersPerLoginMax; ++i) {
    auto& c = later.emplace_back(std::make_unique<Client>(w, "laptop"));
    c->machine = first.machine.duplicate();
    c->node = first.node.duplicate();
    ASSERT_TRUE(c->connect());
    waits.push_back(c->post_register(r));
    c->pump();
    EXPECT_EQ(c->answers[waits.back()].status, 0);
  }
  first.pump();
  EXPECT_EQ(first.answers[asked].status, 429);
  w.coordinator->close(w.clock, later[0]->session);
  ASSERT_TRUE(w.directory->approve(w.clock, "smith", url.substr(url.rfind('/') + 1)).ok());
  for (std::size_t i = 1; i < later.size(); ++i) {
    later[i]->pump();
    EXPECT_EQ(later[i]->answers[waits[i]].status, 200);
  }

  auto large = first.register_request("");
  large.hostinfo->device_model.assign(kRegisterSizeMax, 'x');
  EXPECT_TRUE(first.enrol(large).error.starts_with("HTTP 413")) << first.enrol(large).error;
}

TEST(Coordinator, WhatADecisionNeedsOfARequestIsSmall) {
  World w;
  Client c(w, "laptop");
  auto r = c.register_request("key");
  r.followup.assign(60'000, 'x');
  r.nl_key.assign(60'000, 'x');
  r.tailnet.assign(60'000, 'x');
  r.hostinfo->os_version.assign(60'000, 'x');
  r.ephemeral = true;
  auto kept = needed_later(r);
  EXPECT_LT(ts2021::encode_register_request(kept).reveal().size(), 2000u);
  EXPECT_EQ(kept.node_key, r.node_key);
  EXPECT_EQ(kept.version, r.version);
  EXPECT_TRUE(kept.ephemeral);
  EXPECT_EQ(kept.hostinfo->hostname, "laptop");
}

TEST(Coordinator, MapsOfASessionThatReadsNoneAreBounded) {
  World w;
  w.account("school");
  std::unique_ptr<Client> a;
  for (int i = 0; i < 200; ++i) {
    a = joined(w, "school", "node-" + std::to_string(i), false);
    a->report_home(900);
  }
  const std::string text = ts2021::encode_map_request(a->map_request());
  const Bytes request = as_bytes(text);
  auto stream = a->post(ts2021::kMapPath, request);
  a->pump();
  const std::size_t size = a->answers[stream].body.size();
  ASSERT_GT(size, 80'000u);  // of 200 nodes

  std::vector<ts2021::H2StreamId> asked;
  for (int i = 0; i < 99; ++i) asked.push_back(a->post(ts2021::kMapPath, request));
  a->send();
  // Small answers are not what it is about.
  EXPECT_EQ(a->lite(a->map_request()).status, 200);
  std::size_t given = 0, refused = 0;
  for (auto id : asked) {
    EXPECT_TRUE(a->answers[id].closed);
    given += a->answers[id].status == 200;
    refused += a->answers[id].status == 429;
  }
  EXPECT_EQ(given + refused, asked.size());
  EXPECT_GT(given, 1u);
  EXPECT_LE(given * size, kAnswersQueuedMax + size);
  EXPECT_GT(refused, 0u);

  stream = a->post(ts2021::kMapPath, request);
  a->pump();
  EXPECT_EQ(a->answers[stream].status, 200);
}

TEST(Coordinator, SlowReaderLosesItsStreamAndComesBack) {
  World w;
  w.account("smith");
  auto slow = joined(w, "smith", "slow");
  auto b = joined(w, "smith", "b");
  run(w, {slow.get(), b.get()}, 1s);
  std::string padding(200, 'x');
  for (int i = 0; i < 3000 && w.coordinator->counters().slow_readers == 0; ++i) {
    auto r = b->map_request();
    r.hostinfo->app = padding + std::to_string(i);
    EXPECT_EQ(b->lite(r).status, 200);
    w.step(20ms);
    Client::settle(w);
  }
  EXPECT_EQ(w.coordinator->counters().slow_readers, 1u);
  EXPECT_EQ(w.coordinator->stream_count(), 1u);
  slow->pump();
  EXPECT_TRUE(slow->answers[slow->poll_stream].closed);
  EXPECT_EQ(slow->answers[slow->poll_stream].error_code, ts2021::kH2EnhanceYourCalm);
  slow->poll();
  EXPECT_EQ(slow->peers().size(), 1u);
  EXPECT_TRUE(slow->polling());
}

TEST(Coordinator, RestartKeepsEverything) {
  World w;
  w.account("smith");
  auto a = joined(w, "smith", "a");
  auto r = a->map_request();
  r.endpoints = {{IpAddress::v4(198, 51, 100, 1), 41641}};
  EXPECT_EQ(a->lite(r).status, 200);
  auto b = joined(w, "smith", "b");
  auto node = *a->maps[0].node;
  run(w, {a.get(), b.get()}, 2s);  // soft state is written
  w.open();
  ASSERT_TRUE(a->connect());
  EXPECT_TRUE(a->join("").machine_authorized);
  a->poll();
  ASSERT_EQ(a->maps.size(), 1u);
  EXPECT_EQ(a->maps[0].node->id, node.id);
  EXPECT_EQ(a->maps[0].node->addresses, node.addresses);
  EXPECT_EQ(a->maps[0].node->endpoints.size(), 1u);
  EXPECT_EQ(a->peer_names(), std::vector<std::string>{"b.smith.tail.example."});
  EXPECT_EQ(a->peers().begin()->second.online, false);
  auto c = joined(w, "smith", "c");
  EXPECT_GT(c->maps[0].node->id, node.id + 1);
}

TEST(Coordinator, FullStoreChangesNothing) {
  World w;
  w.account("smith");
  std::string key = w.key("smith");
  Client a(w);
  ASSERT_TRUE(a.connect());
  w.store.fail_with(Error{ErrorCode::kIo, "the disk is full"});
  EXPECT_TRUE(a.join(key).error.starts_with("HTTP 500"));
  EXPECT_EQ(w.directory->node_count(), 0u);
  EXPECT_FALSE(w.directory->health().ok);
  EXPECT_FALSE(w.directory->create_account(w.clock, "jones").ok());
  w.store.fail_with(std::nullopt);
  EXPECT_EQ(a.join(key).error, "");  // the key was not spent
  EXPECT_TRUE(w.directory->health().ok);
  // Soft state waits for better times.
  w.store.fail_with(Error{ErrorCode::kIo, "the disk is full"});
  auto r = a.map_request();
  r.endpoints = {{IpAddress::v4(198, 51, 100, 1), 41641}};
  EXPECT_EQ(a.lite(r).status, 200);
  run(w, {&a}, 20s);
  EXPECT_TRUE(w.directory->has_unsaved());
  w.store.fail_with(std::nullopt);
  run(w, {&a}, 20s);
  EXPECT_FALSE(w.directory->has_unsaved());
}

TEST(Coordinator, HandshakeFailures) {
  World w;
  std::uint8_t bad[101] = {};
  std::uint8_t out[200];
  auto id = w.coordinator->on_upgrade(w.clock, {}, Bytes(bad).first(100));
  std::size_t n = w.coordinator->produce(w.clock, id, out);
  EXPECT_EQ(as_text(Bytes(out).first(n)).substr(3), "wrong handshake initiation size");
  EXPECT_TRUE(w.coordinator->is_over(id));
  // Undecryptable: nothing at all.
  bad[1] = 131;
  bad[2] = 1;
  bad[4] = 96;
  bad[5] = 9;
  id = w.coordinator->on_upgrade(w.clock, {}, bad);
  EXPECT_EQ(w.coordinator->produce(w.clock, id, out), 0u);
  EXPECT_TRUE(w.coordinator->is_over(id));
  Client old(w);
  EXPECT_FALSE(old.connect(80));
  Client young(w);
  EXPECT_TRUE(young.connect(200));
}

TEST(Coordinator, UnknownPathsAndMethods) {
  World w;
  Client c(w);
  ASSERT_TRUE(c.connect());
  auto a = c.post("/machine/set-dns", as_bytes("{}"));
  auto b = c.post("/machine/update-health", as_bytes("{}"));
  auto d = c.post("/machine/tka/bootstrap", {}, "GET");
  auto e = c.post("/machine/map", {}, "GET");
  auto f = c.post("/machine/map", as_bytes("{nonsense"));
  auto g = c.post("/machine/register", as_bytes("[]"));
  auto h = c.post("/machine/register", as_bytes("{\"Version\":40}"));
  c.pump();
  EXPECT_EQ(c.answers[a].status, 501);
  EXPECT_EQ(c.answers[b].status, 204);
  EXPECT_EQ(c.answers[d].status, 404);
  EXPECT_EQ(c.answers[e].status, 405);
  EXPECT_EQ(c.answers[f].status, 400);
  EXPECT_EQ(c.answers[g].status, 400);
  EXPECT_EQ(c.answers[h].status, 400);
}

TEST(Coordinator, HostileBytesAfterAGoodHandshake) {
  World w;
  w.account("smith");
  for (int i = 0; i < 200; ++i) {
    Client c(w);
    ASSERT_TRUE(c.connect());
    ByteVector noise(w.rng.below(600));
    w.rng.fill(noise);
    if (i % 2) {  // as records, so that HTTP/2 sees them
      ByteVector sealed;
      ASSERT_TRUE(c.records->seal(noise, sealed).ok());
      noise = sealed;
    }
    w.coordinator->consume(w.clock, c.session, noise);
    std::uint8_t out[4096];
    while (w.coordinator->produce(w.clock, c.session, out) > 0) {
    }
    w.coordinator->close(w.clock, c.session);
  }
  EXPECT_EQ(w.coordinator->session_count(), 0u);
}

TEST(Coordinator, SilentSessionsAreClosed) {
  World w;
  Client c(w);
  ASSERT_TRUE(c.connect());
  w.step(11s);
  w.coordinator->handle_timeout(w.clock);
  EXPECT_TRUE(w.coordinator->is_over(c.session));
  Client d(w);
  ASSERT_TRUE(d.connect());
  d.post("/machine/nothing", {});
  d.pump();
  w.step(2min);
  w.coordinator->handle_timeout(w.clock);
  EXPECT_FALSE(w.coordinator->is_over(d.session));
  w.step(2min);
  w.coordinator->handle_timeout(w.clock);
  EXPECT_TRUE(w.coordinator->is_over(d.session));
}

TEST(Coordinator, LargeAccount) {
  World w;
  w.account("school");
  std::string key = w.key("school", {"", true, false, std::nullopt});
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 520; ++i) {
    auto c = std::make_unique<Client>(w, "node");
    ASSERT_TRUE(c->connect());
    ASSERT_EQ(c->join(key).error, "");
    c->zstd = i % 2 == 0;
    clients.push_back(std::move(c));
    w.step(1ms);
  }
  run(w, {}, 2s);
  for (int i : {0, 1, 519}) {
    clients[static_cast<std::size_t>(i)]->poll();
    EXPECT_EQ(clients[static_cast<std::size_t>(i)]->peers().size(), 519u);
  }
  EXPECT_EQ(clients[0]->peers().rbegin()->second.name, "node-519.school.tail.example.");
}

TEST(Coordinator, RelayMapChangeReachesEverybody) {
  World w;
  w.account("smith");
  auto a = joined(w, "smith", "a");
  auto map = test::test_relays();
  map.regions[900].nodes[0].host_name = "other.example";
  w.coordinator->set_relays(w.clock, map);
  a->pump();
  ASSERT_TRUE(a->maps.back().derp_map);
  EXPECT_EQ(a->maps.back().derp_map->regions->at(900).nodes[0].host_name, "other.example");
}

TEST(Coordinator, OneShotFetch) {
  World w;
  w.account("smith");
  auto a = joined(w, "smith", "a", false);
  auto stream = a->post(ts2021::kMapPath, as_bytes(ts2021::encode_map_request(a->map_request())));
  a->pump();
  EXPECT_EQ(a->answers[stream].status, 200);
  EXPECT_TRUE(a->answers[stream].closed);
  ts2021::MapFrameReader reader(false);
  ASSERT_TRUE(reader.consume(as_bytes(a->answers[stream].body)).ok());
  auto message = reader.next();
  ASSERT_TRUE(message && message->ok());
  auto map = ts2021::parse_map_response(**message);
  ASSERT_TRUE(map.ok());
  EXPECT_TRUE(map->node);
  EXPECT_FALSE(reader.next());
}

}  // namespace
}  // namespace porthole::coordinator
