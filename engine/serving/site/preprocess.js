// Pixels to a network's input: resize antialiased, crop, normalise. For browsers and Node.js.
//
// The filters are Pillow's, in whole numbers like Pillow's and PyTorch's: a horizontal pass, bytes,
// then a vertical pass. A browser's own scaling has other filters, which change scores.

const cubic = (x) => (x < 1 ? (1.5 * x - 2.5) * x * x + 1 : x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0);
const sinc = (x) => (x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x));
const FILTERS = {
  bilinear: [1, (x) => Math.max(0, 1 - x)],
  bicubic: [2, cubic],
  lanczos: [3, (x) => (x < 3 ? sinc(x) * sinc(x / 3) : 0)],
};
// PyTorch's, whose weights have 16 bits, unless the whole photo scaled is many times what is kept.
const FAST = ['bilinear', 'bicubic'];
const MOST_WASTE = 16;
const BAND = 256; // rows that are read at once
const LUMA = [19595, 38470, 7471]; // 0.299 R + 0.587 G + 0.114 B in 16 bits

export const channelsOf = (preprocess) => preprocess.channels || preprocess.mean.length;

function roundEven(x) {
  const low = Math.floor(x);
  return x - low !== 0.5 ? Math.round(x) : low + (low % 2);
}

// [width, height] of the whole scaled photo, of which the centre is kept.
function scaledSize({ width, height }, { input_size: [H, W], resize, crop_pct: part }) {
  if (resize === 'squash') return [W, H];
  if (resize !== 'crop') throw new Error(`expected resize 'squash' or 'crop', got '${resize}'`);
  const high = Math.floor(H / part), wide = Math.floor(W / part);
  return width * high >= height * wide
    ? [Math.floor((high * width) / height), high] : [wide, Math.floor((wide * height) / width)];
}

// The part of a photo that the network sees: [left, top, width, height], as fractions of it.
export function seenBox(photo, preprocess) {
  const [H, W] = preprocess.input_size, scaled = scaledSize(photo, preprocess);
  const [left, top] = scaled.map((side, i) => roundEven((side - [W, H][i]) / 2));
  return [left / scaled[0], top / scaled[1], W / scaled[0], H / scaled[1]];
}

// Of an axis of `size` inputs that is scaled to `scaled`: weights of its outputs from `first` on.
// Output i is the sum of weights[i * taps + j] / 2^bits times input starts[i] + j.
// PyTorch scales the whole axis; Pillow the kept part, whose ends it holds in 32 bits.
function makeWeights(interpolation, size, scaled, first, count, isPillow) {
  const low = isPillow ? Math.fround((first * size) / scaled) : 0;
  const high = isPillow ? Math.fround(Math.min(((first + count) * size) / scaled, size)) : size;
  const outputs = isPillow ? count : scaled, offset = isPillow ? 0 : first, scale = (high - low) / outputs;
  const starts = new Int32Array(count);
  if (interpolation === 'nearest') {
    const step = Math.fround(high - low) / count;
    for (let i = 0, at = low + 0.5 * step; i < count; i++, at += step) starts[i] = Math.min(size - 1, Math.floor(at));
    return { starts, taps: 1, bits: 0, weights: new Int32Array(count).fill(1) };
  }
  const [radius, kernel] = FILTERS[interpolation], stretch = Math.max(scale, 1), support = radius * stretch;
  const taps = Math.min(size, Math.ceil(support) * 2 + 1), line = new Float64Array(taps);
  const fill = (i) => { // the weights of an output, in `line`; returns the first input
    const centre = low + scale * (i + 0.5), start = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(size, Math.trunc(centre + support + 0.5));
    let sum = 0;
    for (let j = 0; j < taps; j++) {
      line[j] = start + j < end ? kernel(Math.abs((start + j - centre + 0.5) / stretch)) : 0;
      sum += line[j];
    }
    for (let j = 0; j < taps; j++) line[j] /= sum;
    return start;
  };
  let bits = 22;
  if (!isPillow) { // as many as the largest weight leaves of 16
    let most = 0;
    for (let i = 0; i < outputs; i++) { fill(i); for (const w of line) most = Math.max(most, w); }
    for (bits = 0; bits < 22 && Math.trunc(0.5 + most * 2 ** (bits + 1)) < 1 << 15; bits++);
  }
  const weights = new Int32Array(count * taps);
  for (let i = 0; i < count; i++) {
    const start = fill(offset + i);
    starts[i] = Math.min(start, size - taps); // so that all taps are inputs
    for (let j = 0, at = i * taps + start - starts[i]; at < (i + 1) * taps; j++, at++) {
      weights[at] = Math.trunc(line[j] * 2 ** bits + (line[j] < 0 ? -0.5 : 0.5));
    }
  }
  return { starts, taps, bits, weights };
}

// RGBA bytes -> bytes of C channels, opaque.
function toChannels(rgba, channels) {
  const count = rgba.length / 4, out = new Uint8Array(count * channels);
  for (let i = 0; i < count; i++) {
    const r = rgba[4 * i], g = rgba[4 * i + 1], b = rgba[4 * i + 2];
    if (channels === 1) out[i] = (LUMA[0] * r + LUMA[1] * g + LUMA[2] * b + 0x8000) >> 16;
    else { out[3 * i] = r; out[3 * i + 1] = g; out[3 * i + 2] = b; }
  }
  return out;
}

const byte = (x) => (x < 0 ? 0 : x > 255 ? 255 : x);

// Rows [n, width * C] -> [n, count * C].
function acrossRows(rows, width, channels, { starts, taps, bits, weights }) {
  const count = starts.length, n = rows.length / (width * channels), half = bits ? 1 << (bits - 1) : 0;
  const out = new Uint8Array(n * count * channels);
  for (let y = 0, o = 0; y < n; y++) {
    for (let x = 0; x < count; x++) {
      for (let c = 0; c < channels; c++, o++) {
        let sum = half, at = (y * width + starts[x]) * channels + c;
        for (let j = x * taps; j < (x + 1) * taps; j++, at += channels) sum += weights[j] * rows[at];
        out[o] = byte(sum >> bits);
      }
    }
  }
  return out;
}

// Rows [n, width] from input row `top` on -> [count, width].
function downRows(rows, width, top, { starts, taps, bits, weights }) {
  const count = starts.length, half = bits ? 1 << (bits - 1) : 0, out = new Uint8Array(count * width);
  for (let y = 0, o = 0; y < count; y++) {
    for (let x = 0; x < width; x++, o++) {
      let sum = half, at = (starts[y] - top) * width + x;
      for (let j = y * taps; j < (y + 1) * taps; j++, at += width) sum += weights[j] * rows[at];
      out[o] = byte(sum >> bits);
    }
  }
  return out;
}

// photo: {width, height, rows(top, bottom)}: upright, sRGB as stored, rows() gives RGBA bytes.
// Returns bytes [H,W,C].
export function resize(photo, preprocess) {
  const [H, W] = preprocess.input_size, channels = channelsOf(preprocess);
  if (channels !== 1 && channels !== 3) throw new Error(`expected a network of photos, got one of ${channels} channels`);
  const { interpolation } = preprocess, [wide, high] = scaledSize(photo, preprocess);
  const isPillow = !FAST.includes(interpolation) || wide * high > MOST_WASTE * W * H;
  const left = roundEven((wide - W) / 2), top = roundEven((high - H) / 2);
  const across = makeWeights(interpolation, photo.width, wide, left, W, isPillow);
  const down = makeWeights(interpolation, photo.height, high, top, H, isPillow);
  const first = down.starts[0], last = down.starts[H - 1] + down.taps;
  const narrow = new Uint8Array((last - first) * W * channels);
  for (let y = first; y < last; y += BAND) {
    const band = toChannels(photo.rows(y, Math.min(y + BAND, last)), channels);
    narrow.set(acrossRows(band, photo.width, channels, across), (y - first) * W * channels);
  }
  return downRows(narrow, W * channels, first, down);
}

// Bytes [H,W,C] -> float32 [C,H,W], (x / 255 - mean) / std.
export function normalize(pixels, { mean, std }) {
  const channels = mean.length, count = pixels.length / channels, out = new Float32Array(pixels.length);
  const f = Math.fround;
  for (let c = 0; c < channels; c++) {
    const table = Float32Array.from({ length: 256 }, (_, v) => f(f(f(v / 255) - f(mean[c])) / f(std[c])));
    for (let i = 0; i < count; i++) out[c * count + i] = table[pixels[i * channels + c]];
  }
  return out;
}
