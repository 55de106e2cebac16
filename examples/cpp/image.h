// Pixels: decode a photo, write pictures.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct Image {
  int width = 0, height = 0, channels = 3;  // 3 for RGB, 1 for grey
  std::vector<uint8_t> pixels;              // [height][width][channels]

  Image() = default;
  Image(int w, int h, int c) : width(w), height(h), channels(c), pixels(size_t(w) * h * c) {}
  uint8_t* at(int x, int y) { return &pixels[(size_t(y) * width + x) * channels]; }
  const uint8_t* at(int x, int y) const { return &pixels[(size_t(y) * width + x) * channels]; }
};

// A JPEG, PNG, or binary PPM or PGM as upright RGB: turned by its EXIF orientation, transparency on
// white, 16 bits scaled to 8. Throws std::runtime_error.
Image decode(const std::string& path);

// The luma of RGB, 0.299 R + 0.587 G + 0.114 B.
Image to_grey(const Image& rgb);

// Grey as PGM, RGB as PPM.
void write_netpbm(const std::string& path, const Image& image);
