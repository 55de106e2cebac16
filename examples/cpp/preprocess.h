// From a photo to the input of the network, as the description of an artifact says.
#pragma once

#include <vector>

#include "image.h"
#include "json.h"

// Resizing and normalisation: "preprocess" of the description, and the channels.
struct Preprocess {
  int height, width, channels;
  std::string resize, interpolation;
  double crop_pct;
  std::vector<double> mean, std;

  // Throws std::runtime_error for what this example does not do.
  explicit Preprocess(const Json& description);

  // RGB of any size -> [height][width][channels].
  Image resized(const Image& photo) const;

  // (x / 255 - mean) / std, as float [channels][height][width].
  std::vector<float> normalized(const Image& image) const;
};
