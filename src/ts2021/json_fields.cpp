#include "ts2021/json_fields.h"

#include <charconv>
#include <cmath>
#include <limits>

#include "base/assert.h"

#include "ts2021/time_text.h"

namespace porthole::ts2021::json {
namespace {

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; }

bool same_key(bj::string_view key, std::string_view name) {
  if (key.size() != name.size()) return false;
  for (std::size_t i = 0; i < name.size(); ++i) {
    if (lower(key[i]) != lower(name[i])) return false;
  }
  return true;
}

std::string_view view(const bj::string& s) { return {s.data(), s.size()}; }

template <typename T>
bool parse_decimal(std::string_view text, T& out) {
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), out);
  return error == std::errc() && end == text.data() + text.size();
}

// Bytes of the valid UTF-8 sequence at the start of `text`, 0 when there is none (RFC 3629).
std::size_t utf8_length(std::string_view text) {
  auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  auto continues = [&](std::size_t i) { return i < text.size() && (byte(i) & 0xc0) == 0x80; };
  const unsigned char b = byte(0);
  if (b < 0x80) return 1;
  if (b >= 0xc2 && b <= 0xdf) return continues(1) ? 2 : 0;
  if (b >= 0xe0 && b <= 0xef) {
    if (!continues(1) || !continues(2)) return 0;
    if (b == 0xe0 && byte(1) < 0xa0) return 0;  // overlong
    if (b == 0xed && byte(1) > 0x9f) return 0;  // surrogate
    return 3;
  }
  if (b >= 0xf0 && b <= 0xf4) {
    if (!continues(1) || !continues(2) || !continues(3)) return 0;
    if (b == 0xf0 && byte(1) < 0x90) return 0;
    if (b == 0xf4 && byte(1) > 0x8f) return 0;
    return 4;
  }
  return 0;
}

}  // namespace

const bj::value* find_field(const bj::object& object, std::string_view name) {
  for (const auto& entry : object) {
    if (same_key(entry.key(), name)) return &entry.value();
  }
  return nullptr;
}

void JsonReader::read(std::string_view name, const bj::value& v, bool& out) {
  if (const bool* b = v.if_bool()) out = *b;
  else state_.fail(name, "is neither true nor false");
}

void JsonReader::read(std::string_view name, const bj::value& v, double& out) {
  if (const double* d = v.if_double()) out = *d;
  else if (const std::int64_t* i = v.if_int64()) out = static_cast<double>(*i);
  else if (const std::uint64_t* u = v.if_uint64()) out = static_cast<double>(*u);
  else state_.fail(name, "is not a number");
}

void JsonReader::read(std::string_view name, const bj::value& v, std::string& out) {
  if (const bj::string* s = v.if_string()) out = view(*s);
  else state_.fail(name, "is not text");
}

void JsonReader::read(std::string_view name, const bj::value& v, std::int64_t& out) {
  if (const std::int64_t* i = v.if_int64()) out = *i;
  else state_.fail(name, "is not a whole number of 64 bits");
}

void JsonReader::read(std::string_view name, const bj::value& v, int& out) {
  std::int64_t wide = 0;
  read(name, v, wide);
  if (!state_.ok()) return;
  if (wide < std::numeric_limits<int>::min() || wide > std::numeric_limits<int>::max()) {
    return state_.fail(name, "is out of range");
  }
  out = static_cast<int>(wide);
}

void JsonReader::read(std::string_view name, const bj::value& v, std::uint16_t& out) {
  std::int64_t wide = 0;
  read(name, v, wide);
  if (!state_.ok()) return;
  if (wide < 0 || wide > 65535) return state_.fail(name, "is out of range");
  out = static_cast<std::uint16_t>(wide);
}

void JsonReader::read(std::string_view name, const bj::value& v, crypto::SecretText& out) {
  if (const bj::string* s = v.if_string()) out = crypto::SecretText(view(*s));
  else state_.fail(name, "is not text");
}

void JsonReader::read(std::string_view name, const bj::value& v, ByteVector& out) {
  const bj::string* s = v.if_string();
  if (s == nullptr) return state_.fail(name, "is not text");
  auto bytes = from_base64(view(*s));
  if (!bytes) return state_.fail(name, "is not base64");
  out = std::move(*bytes);
}

void JsonReader::read(std::string_view, const bj::value& v, RawJson& out) { out.text = bj::serialize(v); }

void JsonReader::read(std::string_view name, const bj::value& v, std::optional<WallTime>& out) {
  const bj::string* s = v.if_string();
  if (s == nullptr) return state_.fail(name, "is not text");
  out.reset();
  if (s->empty() || is_unset_time(view(*s))) return;
  out = parse_time(view(*s));
  if (!out) state_.fail(name, "is not a time");
}

void JsonReader::read(std::string_view name, const bj::value& v, std::optional<IpAddress>& out) {
  const bj::string* s = v.if_string();
  if (s == nullptr) return state_.fail(name, "is not text");
  out.reset();
  if (s->empty()) return;
  out = IpAddress::parse(view(*s));
  if (!out) state_.fail(name, "is not an address");
}

bool JsonReader::read_key(std::string_view text, std::int64_t& out) { return parse_decimal(text, out); }
bool JsonReader::read_key(std::string_view text, int& out) { return parse_decimal(text, out); }

void append_json_string(std::string& out, std::string_view text) {
  constexpr char kDigits[] = "0123456789abcdef";
  out += '"';
  std::size_t plain = 0;  // length of the run that needs no change
  auto flush = [&](std::size_t skip) {
    out.append(text.substr(0, plain));
    text.remove_prefix(plain + skip);
    plain = 0;
  };
  while (plain < text.size()) {
    const unsigned char c = static_cast<unsigned char>(text[plain]);
    if (c >= 0x20 && c < 0x80 && c != '"' && c != '\\') {
      ++plain;
    } else if (c >= 0x80) {
      if (std::size_t n = utf8_length(text.substr(plain))) {
        plain += n;
      } else {
        flush(1);
        out += "\xef\xbf\xbd";  // U+FFFD
      }
    } else {
      flush(1);
      out += '\\';
      switch (c) {
        case '"': out += '"'; break;
        case '\\': out += '\\'; break;
        case '\n': out += 'n'; break;
        case '\r': out += 'r'; break;
        case '\t': out += 't'; break;
        default:
          out += "u00";
          out += kDigits[c >> 4];
          out += kDigits[c & 15];
      }
    }
  }
  flush(0);
  out += '"';
}

void JsonWriter::write(double v) {
  if (!std::isfinite(v)) v = 0;
  char text[40];
  auto [end, error] = std::to_chars(text, text + sizeof text, v);
  PORTHOLE_ASSERT(error == std::errc());
  out_.append(text, end);
}

void JsonWriter::write(const std::optional<WallTime>& v) {
  append_json_string(out_, v ? format_time(*v) : std::string(kUnsetTime));
}

}  // namespace porthole::ts2021::json
