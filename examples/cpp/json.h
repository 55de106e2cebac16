// Read JSON, as much of it as the description of an artifact needs. A program that has a JSON library
// uses that instead.
#pragma once

#include <map>
#include <string>
#include <vector>

class Json {
 public:
  // Throws std::runtime_error at text that is not JSON.
  static Json parse(const std::string& text);

  // Members and elements; std::runtime_error, with the name, where there is none.
  const Json& operator[](const std::string& name) const;
  const Json& operator[](size_t index) const;
  bool has(const std::string& name) const { return members_.count(name) > 0; }
  size_t size() const { return elements_.size(); }

  bool is_null() const { return kind_ == Kind::null; }
  double number() const;
  const std::string& string() const;

 private:
  enum class Kind { null, boolean, number, string, array, object };
  friend class JsonReader;

  Kind kind_ = Kind::null;
  double number_ = 0;  // 1 for true
  std::string string_;
  std::vector<Json> elements_;
  std::map<std::string, Json> members_;
};
