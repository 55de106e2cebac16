// Explain a photo with a network that combicam exported.
//
//   explain model.ts photo.jpg out      (or model.pt2)
//
// prints the five best classes and the explained ones, and writes out.pgm, the heatmap in 0 .. 255, and
// out.ppm, the photo as the network saw it, with the heatmap in red. Further explained classes get
// out-2.pgm and so on.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <numeric>

#include "artifact.h"
#include "image.h"
#include "preprocess.h"

namespace {

std::string class_name(const Json& description, int number) {
  const Json& classes = description["classes"];
  if (classes.is_null() || !classes.has("names") || size_t(number) >= classes["names"].size()) return "";
  return classes["names"][number].string();
}

void print_best(const Json& description, const float* logits, int count) {
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  const int shown = std::min(5, count);
  std::partial_sort(order.begin(), order.begin() + shown, order.end(),
                    [&](int a, int b) { return logits[a] > logits[b]; });
  double sum = 0;
  for (int i = 0; i < count; ++i) sum += std::exp(double(logits[i]) - logits[order[0]]);
  for (int i = 0; i < shown; ++i) {
    const double probability = std::exp(double(logits[order[i]]) - logits[order[0]]) / sum;
    std::printf("best %d %.6f %s\n", order[i], probability, class_name(description, order[i]).c_str());
  }
}

// A heatmap [H][W] in [0, 1] as bytes, and over the photo.
void write_pictures(const std::string& stem, const float* heatmap, const Image& seen) {
  Image grey(seen.width, seen.height, 1), overlay(seen.width, seen.height, 3);
  for (size_t i = 0; i < grey.pixels.size(); ++i) {
    const float heat = std::clamp(heatmap[i], 0.0f, 1.0f);
    grey.pixels[i] = uint8_t(std::lround(heat * 255));
    for (int c = 0; c < 3; ++c) {
      const float dark = 0.5f * seen.pixels[i * seen.channels + c % seen.channels];
      overlay.pixels[3 * i + c] = uint8_t(std::lround(dark + (c == 0 ? 127 * heat : 0)));
    }
  }
  write_netpbm(stem + ".pgm", grey);
  write_netpbm(stem + ".ppm", overlay);
}

void explain(const std::string& model, const std::string& photo, const std::string& stem) {
  const auto artifact = open_artifact(model);
  const Json& description = artifact->description();
  const Preprocess preprocess(description);
  const Image seen = preprocess.resized(decode(photo));

  const std::string kind = description["signature"]["target_input"].string();
  if (kind == "weights") throw std::runtime_error("this file explains regions; export it without weights");
  const int count = int(description["spec"]["targets"].number());
  std::vector<int64_t> targets;
  for (int k = 1; kind == "classes" && k <= count; ++k) targets.push_back(-k);  // the k-th best class

  auto outputs = artifact->run({1, preprocess.channels, preprocess.height, preprocess.width},
                               preprocess.normalized(seen), targets);
  print_best(description, outputs["logits"].row(0), int(outputs["logits"].shape[1]));
  const Array& heatmaps = outputs["heatmaps"];
  if (heatmaps.shape.size() != 4) throw std::runtime_error("this file has a heatmap for every layer");
  for (int k = 0; k < count; ++k) {
    const int number = int(outputs["classes"].row(0)[k]);
    std::printf("explained %d %.6f %s\n", number, outputs["scores"].row(0)[k],
                class_name(description, number).c_str());
    const size_t pixels = size_t(preprocess.height) * preprocess.width;
    write_pictures(k == 0 ? stem : stem + "-" + std::to_string(k + 1), heatmaps.row(0) + k * pixels, seen);
  }
}

// torch appends its C++ stack to messages.
std::string first_line(const std::string& message) { return message.substr(0, message.find('\n')); }

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) {
    std::fprintf(stderr, "usage: %s MODEL PHOTO OUTPUT\n", arguments[0]);
    return 2;
  }
  try {
    explain(arguments[1], arguments[2], arguments[3]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "explain: %s\n", first_line(error.what()).c_str());
    return 1;
  }
}
