#include "remote/headscale_isolation.h"

#include <porthole/porthole.hpp>

#include <filesystem>
#include <set>
#include <thread>

#include "remote/clock.h"
#include "remote/limits.h"

namespace porthole::remote {

namespace json = boost::json;

// ---- version ---------------------------------------------------------------------------------------------------------

std::optional<std::string> why_not_this_version(std::string_view text) {
  auto v = parse_headscale_version(text);
  constexpr std::string_view kNeeded = "; Headscale 0.28.0 or newer is needed (0.29.2 or newer is recommended)";
  std::string is = "it says it is version \"" + std::string(text) + "\"";
  if (!v) return is + ", which is no release, so it is not known whether it keeps users apart" + std::string(kNeeded);
  is = "it is version " + v->text;
  if (v->major == 0 && v->minor < 27)
    return is + ", whose policy has no rule for the devices of the same user, so accounts cannot be kept apart" + std::string(kNeeded);
  if (v->major == 0 && v->minor == 27)
    return is + ", which forgets at a restart that a device was expired and admits it again with its spent key, and whose "
                "rule for the devices of the same user is an experiment" + std::string(kNeeded);
  return std::nullopt;
}

// ---- what is in force --------------------------------------------------------------------------------------------------

namespace {

std::string what_to_do() {
  return "set this policy: " + std::string(kIsolatingPolicy) +
         " (headscale policy set -f FILE, or the file that policy.path names and a restart of Headscale), then start again";
}

Error refuse(const HeadscaleApi& api, const std::string& what) {
  return {ErrorCode::kUnsupported, "Headscale at " + api.url() + " cannot be used: " + what};
}

bool is_proof_user(std::string_view name) { return name.starts_with(kProofUserPrefix); }

}  // namespace

Status check_isolation(HeadscaleApi& api, IsolationProof& proof) {
  if (auto s = api.health(); !s) return s;
  auto version = api.version();
  if (!version) {
    if (version.error().code != ErrorCode::kNotFound) return version.error();
    return refuse(api, "it does not say its version, so it is older than 0.27 and has no rule for the devices of the same user; "
                       "Headscale 0.28.0 or newer is needed");
  }
  if (auto why = why_not_this_version(*version)) return refuse(api, *why);
  proof.version = parse_headscale_version(*version)->text;
  proof.checks.push_back("version " + proof.version + ": can keep users apart");

  auto policy = api.policy();
  if (!policy) return policy.error();
  if (!*policy || (*policy)->empty()) {
    auto nodes = api.nodes();
    if (!nodes) return nodes.error();
    std::size_t others = 0;
    for (const auto& n : *nodes) others += is_our_user(n.user) ? 0u : 1u;
    if (others > 0)
      return refuse(api, "it has no policy, so every device reaches every other, and there are devices of other users (" +
                             std::to_string(others) + ") that a policy would cut off from each other, so none is set here; " + what_to_do());
    if (auto s = api.set_policy(std::string(kIsolatingPolicy)); !s)
      return refuse(api, "it has no policy, so every device reaches every other, and none can be set here (" +
                             s.error().message + "); " + what_to_do());
    proof.policy_was_set = true;
    policy = api.policy();
    if (!policy) return policy.error();
  }
  if (auto why = why_not_this_policy(policy->value_or(""))) return refuse(api, "its policy does not keep accounts apart: " + *why + "; " + what_to_do());
  proof.checks.push_back(std::string(proof.policy_was_set ? "policy: there was none, so it was set: " : "policy: ") +
                         "devices reach those of their own user only");
  return {};
}

// ---- proof -------------------------------------------------------------------------------------------------------------

namespace {

// A node of this process with a directory of its own, removed with it.
class ProofNode {
 public:
  ProofNode(const ProofOptions& options, const std::string& name, const crypto::SecretText& key)
      : dir_(options.scratch + "/" + name), name_(name) {
    NodeOptions o;
    o.state_dir = dir_;
    o.control_url = options.login_url;
    o.auth_key = key.reveal();
    o.hostname = name;
    o.ca_file = options.ca_file;
    o.ephemeral = true;
    o.relay_only = true;
    node_.emplace(o);
  }
  ~ProofNode() {
    node_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(dir_, ignored);
  }
  ProofNode(const ProofNode&) = delete;

  // Reads what the node knows.
  void look() {
    status_ = json::parse(node_->status_json()).as_object();
    const json::object& self = status_.at("self").as_object();
    if (const json::value* fqdn = self.if_contains("fqdn")) fqdn_ = std::string_view(fqdn->as_string());
    key_ = std::string_view(self.at("key").as_string());
    peers_.clear();
    for (const json::value& p : status_.at("peers").as_array()) peers_.insert(std::string(p.as_object().at("key").as_string()));
  }
  // Registered, and has been told what its tailnet looks like; that it can be reached is not asked for.
  bool joined() const { return !fqdn_.empty(); }
  bool sees(const ProofNode& other) const { return peers_.contains(other.key_); }
  std::size_t peer_count() const { return peers_.size(); }
  const std::string& name() const { return name_; }
  std::string base_domain() const {
    std::size_t dot = fqdn_.find('.');
    return dot == std::string::npos ? std::string() : fqdn_.substr(dot + 1);
  }
  // Why it does not get on, in its own words.
  std::string trouble() const {
    for (const char* name : {"reason", "last_notice"})
      if (const json::value* v = status_.if_contains(name); v && v->is_string()) return std::string(std::string_view(v->as_string()));
    return "it is still waiting";
  }

 private:
  std::string dir_;
  std::string name_;
  std::optional<Node> node_;
  json::object status_;
  std::string fqdn_, key_;
  std::set<std::string> peers_;
};

Status remove_proof_nodes(HeadscaleApi& api) {
  auto nodes = api.nodes();
  if (!nodes) return nodes.error();
  for (const auto& n : *nodes)
    if (is_proof_user(n.user))
      if (auto s = api.delete_node(n.id); !s && s.error().code != ErrorCode::kNotFound) return s;
  return {};
}

Result<HeadscaleUser> proof_user(HeadscaleApi& api, std::string_view number) {
  std::string name = std::string(kProofUserPrefix) + std::string(number);
  auto users = api.users();
  if (!users) return users.error();
  for (const auto& u : *users)
    if (u.name == name) return u;
  return api.create_user(name);
}

std::string seconds(Duration d) {
  std::int64_t tenths = d.count() / 100'000'000;
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10) + " s";
}

Status watch_nodes(HeadscaleApi& api, const ProofOptions& options, IsolationProof& proof,
                   const std::vector<crypto::SecretText>& keys) {
  auto cannot = [&](const std::string& what) {
    return Error{ErrorCode::kUnavailable, "it cannot be proved that Headscale at " + api.url() + " keeps accounts apart: " + what};
  };
  // The other user's node is there first: what the two see when they see each other was computed with it in place.
  ProofNode other(options, "porthole-proof-other", keys[2]);
  Instant begin = read_clock().now;
  auto await = [&](auto done, const ProofNode& who, const std::string& what) -> Status {
    constexpr auto kPause = std::chrono::milliseconds(20);
    for (;;) {
      if (done()) return {};
      if (options.stopped && options.stopped()) return Error{ErrorCode::kCancelled, "stopped"};
      if (read_clock().now - begin > kProofJoinMax)
        return cannot(what + " within " + std::to_string(kProofJoinMax.count()) + " s at " + options.login_url + " (" + who.trouble() + ")");
      std::this_thread::sleep_for(kPause);
    }
  };
  auto joined = [](ProofNode& n) {
    n.look();
    return n.joined();
  };
  if (auto s = await([&] { return joined(other); }, other, "a test device could not join"); !s) return s;
  ProofNode first(options, "porthole-proof-first", keys[0]);
  ProofNode second(options, "porthole-proof-second", keys[1]);
  if (auto s = await([&] { return joined(first); }, first, "a test device could not join"); !s) return s;
  if (auto s = await([&] { return joined(second); }, second, "a test device could not join"); !s) return s;
  auto all_look = [&] {
    for (ProofNode* n : {&first, &second, &other}) n->look();
  };
  auto meet = [&] {
    all_look();
    return first.sees(second) && second.sees(first);
  };
  auto leak = [&] { return first.sees(other) || second.sees(other) || other.sees(first) || other.sees(second) || other.peer_count() > 0 ||
                           first.peer_count() > 1 || second.peer_count() > 1; };
  if (auto s = await([&] { return meet() || leak(); }, first, "two test devices of one user did not see each other"); !s) return s;
  Duration met = read_clock().now - begin;
  Instant from = read_clock().now;
  while (!leak() && read_clock().now - from < options.settle) {
    if (options.stopped && options.stopped()) return Error{ErrorCode::kCancelled, "stopped"};
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    all_look();
  }
  if (leak())
    return refuse(api, "devices of different users see each other although its policy says otherwise (is it the policy in "
                       "force? after a change of the file Headscale must be restarted); " + what_to_do());
  if (!meet()) return cannot("two test devices of one user lost each other");
  proof.base_domain = first.base_domain();
  proof.checks.push_back("proof: two test devices of one user saw each other after " + seconds(met) + "; in the " +
                         seconds(options.settle) + " after that no device saw one of another user");
  return {};
}

}  // namespace

Status prove_isolation(HeadscaleApi& api, const ProofOptions& options, IsolationProof& proof) {
  // A crash may have left some; a node that remembers another network would prove nothing.
  std::error_code ignored;
  std::filesystem::remove_all(options.scratch, ignored);
  if (auto s = remove_proof_nodes(api); !s) return s;
  auto one = proof_user(api, "1");
  if (!one) return one.error();
  auto two = proof_user(api, "2");
  if (!two) return two.error();
  std::vector<crypto::SecretText> keys;
  WallTime until = read_clock().wall + 2 * Duration(kProofJoinMax);
  for (const std::string& id : {one->id, one->id, two->id}) {
    auto key = api.create_key(id, false, true, until);
    if (!key) return key.error();
    keys.push_back(std::move(*key));
  }
  Status result;
  try {
    result = watch_nodes(api, options, proof, keys);
  } catch (const std::exception& e) {  // of the node library
    result = Error{ErrorCode::kUnavailable, std::string("it cannot be proved that accounts are kept apart: ") + e.what()};
  }
  // The nodes are gone from here; now from there, too. Should that fail, the next proof does it: they admit nobody.
  std::set<std::string> prefixes;
  for (const auto& key : keys) prefixes.insert(headscale_key_prefix(key.reveal()));
  (void)remove_proof_nodes(api);
  if (auto list = api.keys())
    for (const auto& key : *list)
      if (prefixes.contains(key.prefix)) {
        (void)api.expire_key(key.id);
        (void)api.delete_key(key.id);
      }
  std::filesystem::remove_all(options.scratch, ignored);
  return result;
}

}  // namespace porthole::remote
