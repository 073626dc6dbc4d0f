// Members of JSON objects from elsewhere: what is missing, or of another kind than expected, is empty.
#pragma once

#include <boost/json.hpp>
#include <string>
#include <string_view>

namespace porthole::app {

inline boost::json::object parse_object(std::string_view text) {
  boost::system::error_code error;
  boost::json::value value = boost::json::parse(text, error);
  return !error && value.is_object() ? std::move(value.as_object()) : boost::json::object();
}
inline std::string text_of(const boost::json::object& object, std::string_view name) {
  const boost::json::value* v = object.if_contains(name);
  return v && v->is_string() ? std::string(std::string_view(v->as_string())) : std::string();
}
inline bool flag_of(const boost::json::object& object, std::string_view name) {
  const boost::json::value* v = object.if_contains(name);
  return v && v->is_bool() && v->as_bool();
}

}  // namespace porthole::app
