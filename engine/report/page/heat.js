// Heatmaps: upsample, fuse as the spec says, colour.

const HEX = DATA.colormaps;
const LAYERS = DATA.maps.layers;
const SPEC = FACTS.spec;

// 256 colours between equally spaced anchors.
function colours(name) {
  const anchors = HEX[name].match(/../g).map((pair) => parseInt(pair, 16));
  const last = anchors.length / 3 - 1;
  const table = new Uint8ClampedArray(768);
  for (let i = 0; i < 256; i++) {
    const at = (i / 255) * last, low = Math.min(Math.floor(at), last - 1), part = at - low;
    for (let c = 0; c < 3; c++) {
      table[3 * i + c] = anchors[3 * low + c] * (1 - part) + anchors[3 * low + 3 + c] * part;
    }
  }
  return table;
}

// Where N samples of a line of n values lie: nodes at the ends, or half pixels.
function steps(n, N, corners) {
  const low = new Int32Array(N), high = new Int32Array(N), part = new Float32Array(N);
  for (let i = 0; i < N; i++) {
    const at = corners ? (N > 1 ? (i * (n - 1)) / (N - 1) : 0)
      : Math.min(n - 1, Math.max(0, ((i + 0.5) * n) / N - 0.5));
    low[i] = Math.floor(at);
    high[i] = Math.min(low[i] + 1, n - 1);
    part[i] = at - low[i];
  }
  return { low, high, part };
}

function upsample(map, h, w, H, W, corners) {
  const down = steps(h, H, corners), across = steps(w, W, corners);
  const out = new Float32Array(H * W);
  for (let y = 0; y < H; y++) {
    const a = down.low[y] * w, b = down.high[y] * w, v = down.part[y];
    for (let x = 0; x < W; x++) {
      const l = across.low[x], r = across.high[x], u = across.part[x];
      const top = map[a + l] + (map[a + r] - map[a + l]) * u;
      const bottom = map[b + l] + (map[b + r] - map[b + l]) * u;
      out[y * W + x] = top + (bottom - top) * v;
    }
  }
  return out;
}

function minMax(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) { if (v < low) low = v; if (v > high) high = v; }
  const scale = high > low ? 1 / (high - low) : 0;
  return values.map((v) => (v - low) * scale);
}

const PER_LAYER = SPEC.normalize === 'map' ? 'none' : SPEC.normalize.replace('+map', '');

// Below, parts are of an image: parts[0] its heatmaps, then a part per layer. A part has K maps of
// h x w values; times units[k] these are the network's.

// A layer's map at H x W in the network's units, as it goes into the fusion.
function layerValues(parts, k, layer, H, W, isWeighted = true) {
  const { h, w, maps, units } = parts[layer + 1];
  let values = Float32Array.from(maps[k], (v) => v * units[k]);
  if (PER_LAYER === 'grid') values = minMax(values);
  values = upsample(values, h, w, H, W, DATA.maps.corners);
  if (PER_LAYER === 'layer') values = minMax(values);
  const weight = isWeighted && SPEC.layer_weights.length ? SPEC.layer_weights[layer] : 1;
  return weight === 1 ? values : values.map((v) => v * weight);
}

function fuse(total, values) {
  if (total === null) return values;
  for (let i = 0; i < total.length; i++) {
    if (SPEC.fuse === 'max') total[i] = Math.max(total[i], values[i]);
    else if (SPEC.fuse === 'product') total[i] *= values[i];
    else total[i] += values[i]; // sum, gated; and mean, which min-max makes the same
  }
  return total;
}

// look: {mode: all | upto | only, layer, k}
function heat(parts, look, [H, W]) {
  const k = Math.min(look.k, parts[0].maps.length - 1);
  if (look.mode === 'all' || !LAYERS.length) {
    const { h, w, maps, units } = parts[0];
    return { H, W, values: upsample(maps[k], h, w, H, W, Boolean(DATA.maps.corners)).map((v) => v * units[k]) };
  }
  let total = null;
  for (let l = look.mode === 'upto' ? 0 : look.layer; l <= look.layer; l++) {
    total = fuse(total, layerValues(parts, k, l, H, W));
  }
  if (SPEC.fuse === 'gated' && look.mode === 'upto') { // by the deepest of the layers shown
    const gate = minMax(layerValues(parts, k, look.layer, H, W, false));
    total = minMax(total).map((v, i) => v * gate[i]);
  }
  return { H, W, values: minMax(total) };
}

// Every layer's part of the sum over the image.
function layerShares(parts, k, [H, W]) {
  const sums = LAYERS.map((_, l) => layerValues(parts, k, l, H, W).reduce((a, b) => a + b, 0));
  const all = sums.reduce((a, b) => a + b, 0) || 1;
  return sums.map((sum) => sum / all);
}

function paint(canvas, { H, W, values }, table, isGlow) {
  canvas.width = W;
  canvas.height = H;
  const context = canvas.getContext('2d'), image = context.createImageData(W, H);
  for (let i = 0; i < values.length; i++) {
    const v = Math.min(1, Math.max(0, values[i])), colour = 3 * Math.round(v * 255);
    image.data.set(table.subarray(colour, colour + 3), 4 * i);
    image.data[4 * i + 3] = isGlow ? 255 * Math.pow(v, 0.7) : 255;
  }
  context.putImageData(image, 0, 0);
}
