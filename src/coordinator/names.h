// Names and their rules: accounts, devices, DNS labels.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"

namespace porthole::coordinator {

// An account name is one DNS label, lower case, at most kAccountNameMax: it becomes part of every node's name.
Status check_account_name(std::string_view name);
// 1 to kDeviceIdMax characters out of A-Z a-z 0-9 . _ -, the first of them a letter or digit.
Status check_device_id(std::string_view id);
// A host name as a DNS label: lower case, everything else becomes "-", runs collapse, trimmed, at most 63 characters;
// a trailing .local, .lan or .localdomain is dropped; "node" when nothing is left.
std::string dns_label(std::string_view hostname);
// `label` with "-<number>" behind it, cut so that it still is a label.
std::string numbered_label(std::string_view label, unsigned number);

}  // namespace porthole::coordinator
