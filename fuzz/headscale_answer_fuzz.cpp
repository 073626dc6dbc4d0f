// links: ts2021 crypto wire base
// sources: remote/headscale_answer.cpp remote/headscale_policy.cpp
// Every answer of Headscale's API; first byte: which. Ids are fit for a path, what is shown of a key is not its secret, and what
// is said about an answer is a short line.
#include <cstdint>
#include <cstdlib>

#include "remote/headscale_answer.h"
#include "remote/headscale_policy.h"

using namespace porthole::remote;

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

void require_line(std::string_view words, std::size_t size_max) {
  require(words.size() <= size_max);
  for (char c : words) require(static_cast<unsigned char>(c) >= 0x20 && c != 0x7f);
}

void require_id(std::string_view id) {
  require(!id.empty() && id.size() < 20 && id.find_first_not_of("0123456789") == std::string_view::npos);
}

void check_policy(std::string_view policy) {
  auto why = why_not_this_policy(policy);
  if (!why) return;
  require(!why->empty());
  require_line(*why, 512);
}

void check_version(std::string_view body) {
  std::string text = headscale_version(body);
  require_line(text, 306);
  auto version = parse_headscale_version(text);
  if (!version) return;
  require(version->text.size() <= 64 && version->text.find("dirty") == std::string::npos);
  require(version->major >= 0 && version->minor >= 0 && version->patch >= 0 && version->major + version->minor > 0);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string_view body(reinterpret_cast<const char*>(data) + 1, size - 1);
  auto object = headscale_object(body);
  switch (data[0] % 10) {
    case 0:
      if (auto users = object ? headscale_users(*object) : std::nullopt)
        for (const HeadscaleUser& u : *users) require_id(u.id);
      break;
    case 1:
      if (auto user = object ? headscale_new_user(*object) : std::nullopt) require_id(user->id);
      break;
    case 2:
      if (auto keys = object ? headscale_keys(*object) : std::nullopt)
        for (const HeadscaleKey& k : *keys) {
          require_id(k.id);
          require(!k.prefix.empty() && k.prefix.size() < body.size());
        }
      break;
    case 3:
      if (auto key = object ? headscale_new_key(*object) : std::nullopt) {
        std::string prefix = headscale_key_prefix(key->text.reveal());
        require(!prefix.empty() && prefix.size() + 65 == key->text.reveal().size() && key->text.reveal().starts_with(prefix));
      }
      break;
    case 4:
      if (auto nodes = object ? headscale_nodes(*object) : std::nullopt)
        for (const HeadscaleNode& n : *nodes) require_id(n.id);
      break;
    case 5: check_version(body); break;
    case 6: require_line(headscale_reason(body), 300); break;
    case 7:
      if (headscale_is_well(body)) require(object.has_value());
      break;
    case 8:
      if (auto policy = headscale_policy(body)) check_policy(*policy);
      break;
    default: check_policy(body); break;
  }
  return 0;
}
