#include "coordinator/names.h"

#include "coordinator/limits.h"

namespace porthole::coordinator {
namespace {

bool is_lower(char c) { return c >= 'a' && c <= 'z'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }
char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

}  // namespace

Status check_account_name(std::string_view name) {
  if (name.empty()) return Error{ErrorCode::kInvalid, "account name: it is empty"};
  if (name.size() > kAccountNameMax)
    return Error{ErrorCode::kInvalid, "account name: longer than " + std::to_string(kAccountNameMax) + " characters"};
  for (char c : name)
    if (!is_lower(c) && !is_digit(c) && c != '-')
      return Error{ErrorCode::kInvalid, "account name: only lower-case letters, digits and '-' are allowed"};
  if (name.front() == '-' || name.back() == '-')
    return Error{ErrorCode::kInvalid, "account name: it may not begin or end with '-'"};
  return {};
}

Status check_device_id(std::string_view id) {
  if (id.empty()) return Error{ErrorCode::kInvalid, "device id: it is empty"};
  if (id.size() > kDeviceIdMax)
    return Error{ErrorCode::kInvalid, "device id: longer than " + std::to_string(kDeviceIdMax) + " characters"};
  for (char c : id)
    if (!is_lower(lower(c)) && !is_digit(c) && c != '.' && c != '_' && c != '-')
      return Error{ErrorCode::kInvalid, "device id: only letters, digits, '.', '_' and '-' are allowed"};
  if (!is_lower(lower(id.front())) && !is_digit(id.front()))
    return Error{ErrorCode::kInvalid, "device id: it must begin with a letter or digit"};
  return {};
}

std::string dns_label(std::string_view hostname) {
  std::string text;
  text.reserve(hostname.size());
  for (char c : hostname) text.push_back(lower(c));
  for (std::string_view suffix : {".local", ".lan", ".localdomain"})
    if (text.size() > suffix.size() && text.ends_with(suffix)) {
      text.resize(text.size() - suffix.size());
      break;
    }
  std::string out;
  for (char c : text) {
    if (is_lower(c) || is_digit(c)) out.push_back(c);
    else if (!out.empty() && out.back() != '-') out.push_back('-');
    if (out.size() == kDnsLabelMax) break;
  }
  while (!out.empty() && out.back() == '-') out.pop_back();
  return out.empty() ? "node" : out;
}

std::string numbered_label(std::string_view label, unsigned number) {
  std::string suffix = "-" + std::to_string(number);
  std::string out(label.substr(0, kDnsLabelMax - suffix.size()));
  while (!out.empty() && out.back() == '-') out.pop_back();
  return out + suffix;
}

}  // namespace porthole::coordinator
