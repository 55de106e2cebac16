#include "image.h"

#include <jpeglib.h>
#include <png.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>

namespace {

constexpr size_t kMaxPixels = 200'000'000;  // a header may promise anything

void check_size(size_t width, size_t height) {
  if (width == 0 || height == 0 || width > kMaxPixels / height) {
    throw std::runtime_error("photo: expected 1 to 200 million pixels, got " + std::to_string(width) +
                             " x " + std::to_string(height));
  }
}

std::vector<uint8_t> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("photo: cannot open " + path);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

// The orientation tag (0x0112) of an EXIF segment, 1 to 8; 1 if it has none.
int exif_orientation(const uint8_t* data, size_t size) {
  if (size < 14 || std::memcmp(data, "Exif\0\0", 6) != 0) return 1;
  const uint8_t* tiff = data + 6;
  size -= 6;
  const bool big = tiff[0] == 'M';
  const auto u16 = [&](size_t i) -> unsigned {
    return big ? tiff[i] << 8 | tiff[i + 1] : tiff[i + 1] << 8 | tiff[i];
  };
  const auto u32 = [&](size_t i) -> size_t {
    return big ? size_t(u16(i)) << 16 | u16(i + 2) : size_t(u16(i + 2)) << 16 | u16(i);
  };
  const size_t start = u32(4);
  if (start > size - 2) return 1;
  const unsigned entries = u16(start);
  for (unsigned i = 0; i < entries && start + 14 + 12 * i <= size; ++i) {
    const size_t entry = start + 2 + 12 * i;
    if (u16(entry) != 0x0112) continue;
    const unsigned value = u16(entry + 8);
    return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

Image upright(const Image& stored, int orientation) {
  if (orientation == 1) return stored;
  const bool swaps = orientation >= 5;
  const bool across = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
  const bool down = orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
  Image turned(swaps ? stored.height : stored.width, swaps ? stored.width : stored.height, 3);
  for (int y = 0; y < turned.height; ++y) {
    for (int x = 0; x < turned.width; ++x) {
      const int u = across ? turned.width - 1 - x : x, v = down ? turned.height - 1 - y : y;
      std::copy_n(swaps ? stored.at(v, u) : stored.at(u, v), 3, turned.at(x, y));
    }
  }
  return turned;
}

[[noreturn]] void jpeg_failure(j_common_ptr info) {
  char message[JMSG_LENGTH_MAX];
  info->err->format_message(info, message);
  throw std::runtime_error(std::string("photo: damaged JPEG: ") + message);
}

void jpeg_warning(j_common_ptr info, int level) {
  if (level < 0) jpeg_failure(info);  // a truncated file is only a warning of libjpeg
}

Image decode_jpeg(const std::vector<uint8_t>& data) {
  jpeg_decompress_struct info{};
  jpeg_error_mgr errors{};
  info.err = jpeg_std_error(&errors);
  errors.error_exit = jpeg_failure;
  errors.emit_message = jpeg_warning;
  jpeg_create_decompress(&info);
  struct Guard {
    jpeg_decompress_struct* info;
    ~Guard() { jpeg_destroy_decompress(info); }
  } guard{&info};
  jpeg_mem_src(&info, data.data(), data.size());
  jpeg_save_markers(&info, JPEG_APP0 + 1, 0xFFFF);  // EXIF
  jpeg_read_header(&info, TRUE);
  check_size(info.image_width, info.image_height);
  if (info.jpeg_color_space == JCS_CMYK || info.jpeg_color_space == JCS_YCCK) {
    throw std::runtime_error("photo: expected a JPEG in RGB or grey, got CMYK; convert it");
  }
  info.out_color_space = JCS_RGB;
  jpeg_start_decompress(&info);
  Image image(info.output_width, info.output_height, 3);
  while (info.output_scanline < info.output_height) {
    JSAMPROW row = image.at(0, info.output_scanline);
    jpeg_read_scanlines(&info, &row, 1);
  }
  int orientation = 1;
  for (auto marker = info.marker_list; marker != nullptr; marker = marker->next) {
    const int found = exif_orientation(marker->data, marker->data_length);
    if (found != 1) orientation = found;
  }
  jpeg_finish_decompress(&info);  // frees the markers
  return upright(image, orientation);
}

Image decode_png(const std::vector<uint8_t>& data) {
  png_image header{};
  header.version = PNG_IMAGE_VERSION;
  const auto check = [&](int done) {
    if (done) return;
    const std::string why = header.message;
    png_image_free(&header);
    throw std::runtime_error("photo: damaged PNG: " + why);
  };
  check(png_image_begin_read_from_memory(&header, data.data(), data.size()));
  check_size(header.width, header.height);
  header.format = PNG_FORMAT_RGBA;
  Image rgba(header.width, header.height, 4);
  check(png_image_finish_read(&header, nullptr, rgba.pixels.data(), 0, nullptr));
  Image image(rgba.width, rgba.height, 3);
  for (size_t i = 0; i < image.pixels.size() / 3; ++i) {
    const int alpha = rgba.pixels[4 * i + 3];
    for (int c = 0; c < 3; ++c) {
      image.pixels[3 * i + c] = (rgba.pixels[4 * i + c] * alpha + 255 * (255 - alpha) + 127) / 255;
    }
  }
  return image;
}

// Binary PPM (P6) and PGM (P5) of 8 bits.
Image decode_netpbm(const std::vector<uint8_t>& data) {
  std::istringstream file(std::string(data.begin(), data.end()));
  std::string magic;
  size_t numbers[3] = {};
  file >> magic;
  for (size_t& number : numbers) {
    while ((file >> std::ws).peek() == '#') file.ignore(1 << 20, '\n');
    file >> number;
  }
  file.get();  // the one space before the pixels
  if (!file || numbers[2] != 255) throw std::runtime_error("photo: expected a PPM or PGM of 8 bits");
  check_size(numbers[0], numbers[1]);
  Image stored(numbers[0], numbers[1], magic == "P5" ? 1 : 3);
  file.read(reinterpret_cast<char*>(stored.pixels.data()), stored.pixels.size());
  if (!file) throw std::runtime_error("photo: the file ends too early");
  if (stored.channels == 3) return stored;
  Image image(stored.width, stored.height, 3);
  for (size_t i = 0; i < image.pixels.size(); ++i) image.pixels[i] = stored.pixels[i / 3];
  return image;
}

}  // namespace

Image decode(const std::string& path) {
  const std::vector<uint8_t> data = read_file(path);
  const auto begins = [&](const char* magic, size_t size) {
    return data.size() > size && std::memcmp(data.data(), magic, size) == 0;
  };
  if (begins("\xFF\xD8\xFF", 3)) return decode_jpeg(data);
  if (begins("\x89PNG\r\n\x1A\n", 8)) return decode_png(data);
  if (begins("P6", 2) || begins("P5", 2)) return decode_netpbm(data);
  throw std::runtime_error("photo: expected a JPEG, PNG, PPM or PGM, got " + path);
}

Image to_grey(const Image& rgb) {
  Image grey(rgb.width, rgb.height, 1);
  for (size_t i = 0; i < grey.pixels.size(); ++i) {
    const uint8_t* p = &rgb.pixels[3 * i];
    grey.pixels[i] = (19595 * p[0] + 38470 * p[1] + 7471 * p[2] + (1 << 15)) >> 16;
  }
  return grey;
}

void write_netpbm(const std::string& path, const Image& image) {
  std::ofstream file(path, std::ios::binary);
  file << (image.channels == 1 ? "P5\n" : "P6\n") << image.width << " " << image.height << "\n255\n";
  file.write(reinterpret_cast<const char*>(image.pixels.data()), image.pixels.size());
  if (!file.flush()) throw std::runtime_error("cannot write " + path);
}
