// How the message codecs in json.cpp read and write: one description of a message's fields serves both directions.
//
//   template <typename Visitor, typename M> requires IsMessage<M, Thing>
//   void fields(Visitor& v, M& thing) { v("ID", thing.id, kAlways); v("Name", thing.name); }
//
// JsonReader finds each field in a parsed object, JsonWriter prints it. Internal to this folder.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "base/ip.h"
#include "base/key.h"
#include "base/time.h"
#include "crypto/secret.h"

namespace porthole::ts2021::json {

namespace bj = boost::json;

// Map values for which null means something.
template <typename T>
inline constexpr bool kNullable = false;
template <typename T>
inline constexpr bool kNullable<std::optional<T>> = true;
template <typename T>
inline constexpr bool kNullable<std::vector<T>> = true;

// Whether a field with its zero value is written.
enum class Emit { kUnlessZero, kAlways };
inline constexpr Emit kAlways = Emit::kAlways;

// Raw JSON text kept as it is.
struct RawJson {
  std::string& text;
};
// A field that exists only to be noticed on reading.
struct Presence {
  bool& present;
};

// First trouble of one document; later ones do not overwrite it.
struct ReadState {
  std::string trouble;
  void fail(std::string_view field, std::string_view what) {
    if (trouble.empty()) trouble = "field " + std::string(field) + " " + std::string(what);
  }
  bool ok() const { return trouble.empty(); }
};

const bj::value* find_field(const bj::object& object, std::string_view name);

class JsonReader {
 public:
  static constexpr bool kReading = true;
  JsonReader(const bj::object& object, ReadState& state) : object_(object), state_(state) {}

  template <typename T>
  void operator()(std::string_view name, T&& field, Emit = Emit::kUnlessZero) {
    if (!state_.ok()) return;
    if (const bj::value* v = find_field(object_, name); v != nullptr && !v->is_null()) read(name, *v, field);
  }

  void read(std::string_view name, const bj::value& v, bool& out);
  void read(std::string_view name, const bj::value& v, double& out);
  void read(std::string_view name, const bj::value& v, std::string& out);
  void read(std::string_view name, const bj::value& v, std::int64_t& out);
  void read(std::string_view name, const bj::value& v, int& out);
  void read(std::string_view name, const bj::value& v, std::uint16_t& out);
  void read(std::string_view name, const bj::value& v, crypto::SecretText& out);
  void read(std::string_view name, const bj::value& v, ByteVector& out);
  void read(std::string_view name, const bj::value& v, RawJson& out);
  void read(std::string_view, const bj::value&, Presence& out) { out.present = true; }
  // The unset time and "" leave it absent.
  void read(std::string_view name, const bj::value& v, std::optional<WallTime>& out);
  void read(std::string_view name, const bj::value& v, std::optional<IpAddress>& out);

  template <typename Role>
  void read(std::string_view name, const bj::value& v, PublicKey<Role>& out) {
    const bj::string* s = v.if_string();
    if (s == nullptr) return state_.fail(name, "is not text");
    if (s->empty()) return;
    auto key = PublicKey<Role>::parse(std::string_view(s->data(), s->size()));
    if (!key) return state_.fail(name, "is not a key");
    out = *key;
  }
  template <typename T>
  void read(std::string_view name, const bj::value& v, std::optional<T>& out) {
    T value{};
    read(name, v, value);
    if (state_.ok()) out = std::move(value);
  }
  template <typename T>
  void read(std::string_view name, const bj::value& v, std::vector<T>& out) {
    const bj::array* a = v.if_array();
    if (a == nullptr) return state_.fail(name, "is not a list");
    out.clear();
    out.reserve(a->size());
    for (const bj::value& element : *a) {
      if (element.is_null()) continue;
      if constexpr (std::is_same_v<T, Endpoint> || std::is_same_v<T, Prefix>) {
        // One malformed text is left out; a list of something else is an error.
        const bj::string* s = element.if_string();
        if (s == nullptr) return state_.fail(name, "is not a list of texts");
        if (auto parsed = T::parse(std::string_view(s->data(), s->size()))) out.push_back(*parsed);
      } else {
        T value{};
        read(name, element, value);
        if (!state_.ok()) return;
        out.push_back(std::move(value));
      }
    }
  }
  // Keys that are no number of the map's kind are left out. A null value: an absent optional, an empty list, else
  // the entry is left out.
  template <typename K, typename T>
  void read(std::string_view name, const bj::value& v, std::map<K, T>& out) {
    const bj::object* o = v.if_object();
    if (o == nullptr) return state_.fail(name, "is not an object");
    out.clear();
    for (const auto& entry : *o) {
      K key{};
      if (!read_key(std::string_view(entry.key().data(), entry.key().size()), key)) continue;
      T value{};
      if (!entry.value().is_null()) {
        read(name, entry.value(), value);
        if (!state_.ok()) return;
      } else if constexpr (!kNullable<T>) {
        continue;
      }
      out.insert_or_assign(std::move(key), std::move(value));
    }
  }
  // Anything that has a fields() description.
  template <typename M>
    requires requires(JsonReader& r, M& m) { fields(r, m); }
  void read(std::string_view name, const bj::value& v, M& out) {
    const bj::object* o = v.if_object();
    if (o == nullptr) return state_.fail(name, "is not an object");
    JsonReader inner(*o, state_);
    fields(inner, out);
  }

  const bj::object& object() const { return object_; }
  ReadState& state() { return state_; }

 private:
  static bool read_key(std::string_view text, std::string& out) {
    out = text;
    return true;
  }
  static bool read_key(std::string_view text, std::int64_t& out);
  static bool read_key(std::string_view text, int& out);

  const bj::object& object_;
  ReadState& state_;
};

// Appends `text` as a JSON string: nothing escaped that need not be, invalid UTF-8 replaced.
void append_json_string(std::string& out, std::string_view text);

class JsonWriter {
 public:
  static constexpr bool kReading = false;
  explicit JsonWriter(std::string& out) : out_(out) { out_ += '{'; }
  void close() { out_ += '}'; }

  template <typename T>
  void operator()(std::string_view name, const T& field, Emit emit = Emit::kUnlessZero) {
    if (emit == Emit::kUnlessZero && is_zero(field)) return;
    if (!first_) out_ += ',';
    first_ = false;
    append_json_string(out_, name);
    out_ += ':';
    write(field);
  }

 private:
  static bool is_zero(bool v) { return !v; }
  static bool is_zero(double v) { return v == 0; }
  static bool is_zero(std::int64_t v) { return v == 0; }
  static bool is_zero(int v) { return v == 0; }
  static bool is_zero(std::uint16_t v) { return v == 0; }
  static bool is_zero(const std::string& v) { return v.empty(); }
  static bool is_zero(const crypto::SecretText& v) { return v.empty(); }
  static bool is_zero(const RawJson& v) { return v.text.empty(); }
  static bool is_zero(const Presence&) { return true; }
  template <typename Role>
  static bool is_zero(const PublicKey<Role>& v) { return v.is_zero(); }
  template <typename T>
  static bool is_zero(const std::vector<T>& v) { return v.empty(); }
  template <typename K, typename T>
  static bool is_zero(const std::map<K, T>& v) { return v.empty(); }
  template <typename T>
  static bool is_zero(const std::optional<T>& v) { return !v.has_value(); }
  template <typename M>
    requires requires(JsonWriter& w, const M& m) { fields(w, m); }
  static bool is_zero(const M&) { return false; }

  void write(bool v) { out_ += v ? "true" : "false"; }
  void write(double v);
  void write(std::int64_t v) { out_ += std::to_string(v); }
  void write(int v) { out_ += std::to_string(v); }
  void write(std::uint16_t v) { out_ += std::to_string(v); }
  void write(const std::string& v) { append_json_string(out_, v); }
  void write(const crypto::SecretText& v) { append_json_string(out_, v.reveal()); }
  void write(const RawJson& v) { out_ += v.text; }
  void write(const Presence&) {}
  void write(const ByteVector& v) { append_json_string(out_, to_base64(v)); }
  void write(const Endpoint& v) { append_json_string(out_, v.to_string()); }
  void write(const Prefix& v) { append_json_string(out_, v.to_string()); }
  void write(const IpAddress& v) { append_json_string(out_, v.to_string()); }
  template <typename Role>
  void write(const PublicKey<Role>& v) { append_json_string(out_, v.to_string()); }
  // An absent time that must be there is Go's unset time; other absent values that must be there are null.
  void write(const std::optional<WallTime>& v);
  template <typename T>
  void write(const std::optional<T>& v) {
    if (v) write(*v);
    else out_ += "null";
  }
  template <typename T>
  void write(const std::vector<T>& v) {
    out_ += '[';
    bool first = true;
    for (const T& element : v) {
      if (!first) out_ += ',';
      first = false;
      write(element);
    }
    out_ += ']';
  }
  template <typename K, typename T>
  void write(const std::map<K, T>& v) {
    out_ += '{';
    bool first = true;
    for (const auto& [key, value] : v) {
      if (!first) out_ += ',';
      first = false;
      if constexpr (std::is_same_v<K, std::string>) append_json_string(out_, key);
      else append_json_string(out_, std::to_string(key));
      out_ += ':';
      write(value);
    }
    out_ += '}';
  }
  template <typename M>
    requires requires(JsonWriter& w, const M& m) { fields(w, m); }
  void write(const M& v) {
    JsonWriter inner(out_);
    fields(inner, v);
    inner.close();
  }

  std::string& out_;
  bool first_ = true;
};

}  // namespace porthole::ts2021::json
