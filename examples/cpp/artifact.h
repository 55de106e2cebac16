// A file that combicam exported: TorchScript (.ts) or AOTInductor (.pt2).
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "json.h"

struct Array {
  std::vector<int64_t> shape;
  std::vector<float> values;  // in C order; numbers of classes are whole numbers

  const float* row(size_t i) const { return &values[i * (values.size() / shape.at(0))]; }
};

class Artifact {
 public:
  virtual ~Artifact() = default;

  // Spec, layers, preprocessing, classes: docs/embedding.md has its keys.
  const Json& description() const { return description_; }

  // Run a batch. `images` are float [B,C,H,W], normalised; `targets` int64 [B,K], left out if it is
  // empty. The outputs are named as in the description.
  virtual std::map<std::string, Array> run(const std::vector<int64_t>& shape, std::vector<float> images,
                                           std::vector<int64_t> targets) = 0;

 protected:
  // Throws std::runtime_error for a format that this program does not know.
  void set_description(const std::string& text);

  Json description_;
};

// By the suffix. A .ts runs on the CPU, a .pt2 on the device that it was compiled for. Throws
// std::exception.
std::unique_ptr<Artifact> open_artifact(const std::string& path);

inline bool ends_with(const std::string& text, const std::string& end) {
  return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}
