#include "preprocess.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

namespace {

double bilinear(double x) { return std::max(0.0, 1 - std::abs(x)); }

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return ((x - 5) * x + 8) * x * a - 4 * a;
  return 0;
}

// The pixels of a row that make one pixel, and their weights in units of 2^-precision.
struct Window {
  int first;
  std::vector<int> weights;
};

// Antialiased resampling of one axis in integers, the arithmetic of Pillow and torch for bytes: when it
// shrinks, the filter is as wide as an output pixel.
struct Axis {
  std::vector<Window> windows;
  int precision = 0;

  // `count` pixels from `start` on, of `from` pixels that are scaled to `to`.
  Axis(int from, int to, int start, int count, bool is_cubic) {
    const double scale = double(from) / to, wide = std::max(scale, 1.0);
    const double support = (is_cubic ? 2 : 1) * wide;
    std::vector<std::vector<double>> exact;
    double largest = 0;
    // The precision is that of the whole axis, of which only a part may be wanted.
    for (int i = 0; i < to; ++i) {
      const double centre = scale * (i + 0.5);
      const int first = std::max(int(centre - support + 0.5), 0);
      const int end = std::min(int(centre + support + 0.5), from);
      std::vector<double> weights;
      double sum = 0;
      for (int j = first; j < end; ++j) {
        const double x = (j - centre + 0.5) / wide;
        weights.push_back(is_cubic ? bicubic(x) : bilinear(x));
        sum += weights.back();
      }
      for (double& weight : weights) largest = std::max(largest, weight /= sum);
      if (i < start || i >= start + count) continue;
      windows.push_back({first, {}});
      exact.push_back(weights);
    }
    // As many bits as fit into 16, with the sign.
    while (precision < 22 && int(0.5 + largest * (1 << (precision + 1))) < (1 << 15)) ++precision;
    for (size_t i = 0; i < windows.size(); ++i) {
      for (double weight : exact[i]) {
        windows[i].weights.push_back(int(weight * (1 << precision) + (weight < 0 ? -0.5 : 0.5)));
      }
    }
  }

  uint8_t pixel(const Window& window, const uint8_t* values, int stride) const {
    int sum = 1 << (precision - 1);
    for (int weight : window.weights) {
      sum += weight * *values;
      values += stride;
    }
    return std::clamp(sum >> precision, 0, 255);
  }
};

// The horizontal pass first; between the passes values are bytes.
Image resampled(const Image& image, const Axis& across, const Axis& down) {
  const int width = across.windows.size(), height = down.windows.size(), channels = image.channels;
  const int top = down.windows.front().first;
  const int bottom = down.windows.back().first + down.windows.back().weights.size();
  Image wide(width, bottom - top, channels), made(width, height, channels);
  for (int y = 0; y < wide.height; ++y) {
    for (int x = 0; x < width; ++x) {
      const Window& window = across.windows[x];
      const uint8_t* from = image.at(window.first, top + y);
      for (int c = 0; c < channels; ++c) wide.at(x, y)[c] = across.pixel(window, from + c, channels);
    }
  }
  for (int y = 0; y < height; ++y) {
    const Window& window = down.windows[y];
    for (int x = 0; x < width; ++x) {
      const uint8_t* from = wide.at(x, window.first - top);
      for (int c = 0; c < channels; ++c) made.at(x, y)[c] = down.pixel(window, from + c, width * channels);
    }
  }
  return made;
}

// Half to even, like Python's round.
int start_of(int scaled, int kept) { return int(std::nearbyint((scaled - kept) / 2.0)); }

std::vector<double> numbers(const Json& list) {
  std::vector<double> found;
  for (size_t i = 0; i < list.size(); ++i) found.push_back(list[i].number());
  return found;
}

}  // namespace

Preprocess::Preprocess(const Json& description) {
  const Json& given = description["preprocess"];
  height = int(given["input_size"][0].number());
  width = int(given["input_size"][1].number());
  resize = given["resize"].string();
  interpolation = given["interpolation"].string();
  crop_pct = given["crop_pct"].number();
  mean = numbers(given["mean"]);
  std = numbers(given["std"]);
  channels = int(mean.size());
  if (channels != 1 && channels != 3) {
    throw std::runtime_error("this example takes photos: networks of 1 (grey) or 3 channels (RGB)");
  }
  if (resize != "crop" && resize != "squash") {
    throw std::runtime_error("expected resize 'crop' or 'squash', got '" + resize + "'");
  }
  if (interpolation != "bilinear" && interpolation != "bicubic") {
    throw std::runtime_error("expected interpolation 'bilinear' or 'bicubic', got '" + interpolation + "'");
  }
}

Image Preprocess::resized(const Image& photo) const {
  int scaled_width = width, scaled_height = height;
  if (resize == "crop") {  // cover (height, width) / crop_pct, and keep the centre
    const int64_t high = int64_t(std::floor(height / crop_pct)), wide = int64_t(std::floor(width / crop_pct));
    const bool is_wide = photo.width * high >= photo.height * wide;
    scaled_width = int(is_wide ? high * photo.width / photo.height : wide);
    scaled_height = int(is_wide ? high : wide * photo.height / photo.width);
  }
  const bool is_cubic = interpolation == "bicubic";
  const Axis across(photo.width, scaled_width, start_of(scaled_width, width), width, is_cubic);
  const Axis down(photo.height, scaled_height, start_of(scaled_height, height), height, is_cubic);
  return resampled(channels == 1 ? to_grey(photo) : photo, across, down);
}

std::vector<float> Preprocess::normalized(const Image& image) const {
  std::vector<float> made;
  for (int c = 0; c < channels; ++c) {
    for (size_t i = c; i < image.pixels.size(); i += channels) {
      made.push_back(float((image.pixels[i] / 255.0 - mean[c]) / std[c]));
    }
  }
  return made;
}
