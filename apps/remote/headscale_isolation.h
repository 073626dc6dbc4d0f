// Whether a Headscale keeps accounts apart. It is one flat network unless its policy says otherwise, whatever its users
// are, so three things are looked at before any device gets a key:
//
//   version   whether it has a rule for "devices of the same user" that can be relied on
//   policy    what is in force, or set here where there is none and nobody else's devices would be cut off by it
//   proof     whether the policy does what it says: three throw-away nodes join for two throw-away users; the two of the
//             same user must see each other (or else the test shows nothing), and no node the one of the other user
//
// The throw-away users stay (in 0.28.0 the deletion of any user deletes the pre-auth keys of everyone); their nodes and
// keys are removed.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "remote/headscale_api.h"
#include "remote/headscale_policy.h"

namespace porthole::remote {

// nullopt: it can isolate. Otherwise the sentence why it cannot be used.
std::optional<std::string> why_not_this_version(std::string_view version);

struct IsolationProof {
  std::string version;
  bool policy_was_set = false;
  std::string base_domain;          // of all node names
  std::vector<std::string> checks;  // what was looked at and what was found, one sentence each
};

struct ProofOptions {
  std::string login_url;  // where devices log in
  std::string ca_file;
  std::string scratch;    // a directory for the nodes' state; emptied afterwards
  std::chrono::milliseconds settle;
  std::function<bool()> stopped;  // gives up early
};

// Version and policy; sets the policy where that is right (see above). Fills in the proof's first parts. Error: the sentence
// what is wrong and what to do (kUnavailable when Headscale could not be asked, kUnsupported when it does not isolate).
Status check_isolation(HeadscaleApi& api, IsolationProof& proof);
// The three nodes.
Status prove_isolation(HeadscaleApi& api, const ProofOptions& options, IsolationProof& proof);

}  // namespace porthole::remote
