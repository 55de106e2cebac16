#include "json.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>

class JsonReader {
 public:
  explicit JsonReader(const std::string& text) : at_(text.c_str()), end_(at_ + text.size()) {}

  Json whole() {
    Json value = next();
    space();
    if (at_ != end_) fail("the end");
    return value;
  }

 private:
  Json next() {
    space();
    Json value;
    if (take("null")) return value;
    if (take("true") || take("false")) {
      value.kind_ = Json::Kind::boolean;
      value.number_ = at_[-2] == 'u';  // tr-u-e
    } else if (take("[")) {
      value.kind_ = Json::Kind::array;
      for (bool more = !ends(']'); more; more = !ends(']', true)) value.elements_.push_back(next());
    } else if (take("{")) {
      value.kind_ = Json::Kind::object;
      for (bool more = !ends('}'); more; more = !ends('}', true)) {
        space();
        std::string name = quoted();
        space();
        if (!take(":")) fail("':'");
        value.members_.emplace(std::move(name), next());
      }
    } else if (at_ != end_ && *at_ == '"') {
      value.kind_ = Json::Kind::string;
      value.string_ = quoted();
    } else {
      char* after = nullptr;
      value.kind_ = Json::Kind::number;
      value.number_ = std::strtod(at_, &after);  // the text ends with a zero byte
      if (after == at_) fail("a value");
      at_ = after;
    }
    return value;
  }

  // Whether the array or object ends here; behind an element, a comma is the alternative.
  bool ends(char bracket, bool behind_element = false) {
    space();
    if (at_ != end_ && *at_ == bracket) return ++at_, true;
    if (behind_element && !take(",")) fail("',' or a bracket");
    return false;
  }

  std::string quoted() {
    if (!take("\"")) fail("a string");
    std::string text;
    while (at_ != end_ && *at_ != '"') {
      if (*at_ != '\\') {
        text += *at_++;
        continue;
      }
      ++at_;
      static const char* const escapes = "\"\\/bfnrtu";
      const char* found = at_ == end_ ? nullptr : std::strchr(escapes, *at_);
      if (found == nullptr || *found == 0) fail("an escape");
      ++at_;
      if (*found == 'u') {
        add_utf8(text, code_point());
      } else {
        text += "\"\\/\b\f\n\r\t"[found - escapes];
      }
    }
    if (!take("\"")) fail("'\"'");
    return text;
  }

  unsigned hex4() {
    unsigned value = 0;
    for (int i = 0; i < 4; ++i, ++at_) {
      const char* digits = "0123456789abcdef";
      const char* found = at_ == end_ ? nullptr : std::strchr(digits, *at_ | 0x20);
      if (found == nullptr || *found == 0) fail("four hexadecimal digits");
      value = value * 16 + static_cast<unsigned>(found - digits);
    }
    return value;
  }

  unsigned code_point() {
    const unsigned high = hex4();
    if (high < 0xD800 || high >= 0xDC00 || !take("\\u")) return high;
    return 0x10000 + ((high - 0xD800) << 10) + (hex4() - 0xDC00);
  }

  static void add_utf8(std::string& text, unsigned code) {
    if (code < 0x80) {
      text += static_cast<char>(code);
      return;
    }
    const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
    static const unsigned first[] = {0, 0xC0, 0xE0, 0xF0};
    text += static_cast<char>(first[more] | (code >> (6 * more)));
    for (int i = more - 1; i >= 0; --i) text += static_cast<char>(0x80 | ((code >> (6 * i)) & 0x3F));
  }

  bool take(const char* word) {
    const size_t length = std::strlen(word);
    if (static_cast<size_t>(end_ - at_) < length || std::strncmp(at_, word, length) != 0) return false;
    at_ += length;
    return true;
  }

  void space() {
    while (at_ != end_ && std::strchr(" \t\r\n", *at_) != nullptr) ++at_;
  }

  [[noreturn]] void fail(const std::string& expected) const {
    throw std::runtime_error("description: expected " + expected + ", got " +
                             (at_ == end_ ? "the end" : "'" + std::string(at_, end_).substr(0, 20) + "'"));
  }

  const char* at_;
  const char* end_;
};

Json Json::parse(const std::string& text) { return JsonReader(text).whole(); }

const Json& Json::operator[](const std::string& name) const {
  const auto found = members_.find(name);
  if (found == members_.end()) throw std::runtime_error("description: expected '" + name + "'");
  return found->second;
}

const Json& Json::operator[](size_t index) const {
  if (index >= elements_.size()) throw std::runtime_error("description: a list is too short");
  return elements_[index];
}

double Json::number() const {
  if (kind_ != Kind::number) throw std::runtime_error("description: expected a number");
  return number_;
}

const std::string& Json::string() const {
  if (kind_ != Kind::string) throw std::runtime_error("description: expected a string");
  return string_;
}
