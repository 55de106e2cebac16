// Decode and explain photos, away from the page, which stays responsive.
//
// In: {id, photo: Blob}, then {id, target: class} for other classes of the same photo.
// Out: {loading: 0…1}, {ready: threads}, {failed: text}; {id, ...answer} or {id, error: text}.

import { best, explain } from './explain.js';
import { normalize, resize, seenBox } from './preprocess.js';

const here = (name) => new URL(name, import.meta.url).href;
const BEST = 5;

async function fetched(name) {
  const response = await fetch(here(name)).catch((error) => { throw new Error(`${name} cannot be loaded (${error.message})`); });
  if (!response.ok) throw new Error(`${name} cannot be loaded (${response.status} ${response.statusText})`);
  return response;
}

async function bytesOf(name) {
  const response = await fetched(name), all = Number(response.headers.get('Content-Length')) || Infinity;
  const chunks = [];
  let size = 0;
  for (let reader = response.body.getReader(), part = await reader.read(); !part.done; part = await reader.read()) {
    chunks.push(part.value);
    size += part.value.length;
    postMessage({ loading: Math.min(1, size / all) });
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

async function load() {
  const ort = await import('./ort/ort.wasm.min.mjs').catch(() => {
    throw new Error('ONNX Runtime is missing: copy ort.wasm.min.mjs, ort-wasm-simd-threaded.mjs and '
      + 'ort-wasm-simd-threaded.wasm from the folder dist of the npm package onnxruntime-web into ort/');
  });
  ort.env.wasm.wasmPaths = here('ort/');
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  const model = await (await fetched('model.json')).json();
  const session = await ort.InferenceSession.create(await bytesOf('model.onnx'), { executionProviders: ['wasm'] });
  postMessage({ ready: ort.env.wasm.numThreads });
  return { ort, model, session };
}

// Upright, without the colour conversion of profiles, on white: as Python decodes photos.
async function decode(blob) {
  const options = { imageOrientation: 'from-image', colorSpaceConversion: 'none' };
  const bitmap = await createImageBitmap(blob, options).catch(() => {
    throw new Error('this is not a photo that the browser can read');
  });
  const { width, height } = bitmap, canvas = new OffscreenCanvas(width, 1);
  const context = canvas.getContext('2d', { willReadFrequently: true });
  const rows = (top, bottom) => { // a few at once, because some browsers limit a canvas to 16 megapixels
    canvas.height = bottom - top;
    context.fillStyle = 'white';
    context.fillRect(0, 0, width, canvas.height);
    context.drawImage(bitmap, 0, top, width, canvas.height, 0, 0, width, canvas.height);
    return context.getImageData(0, 0, width, canvas.height).data;
  };
  return { width, height, rows, close: () => bitmap.close() };
}

let current = null; // {id, images}
const loaded = load();
loaded.catch((error) => postMessage({ failed: error.message }));

async function answer({ id, photo: blob, target = null }) {
  const { ort, model, session } = await loaded, answered = { id };
  const clock = { start: performance.now() };
  if (blob) {
    const photo = await decode(blob);
    clock.decoded = performance.now();
    const pixels = resize(photo, model.preprocess);
    photo.close();
    current = { id, images: normalize(pixels, model.preprocess) };
    clock.resized = performance.now();
    Object.assign(answered, { size: [photo.width, photo.height], box: seenBox(photo, model.preprocess),
      decode_s: (clock.decoded - clock.start) / 1000, resize_s: (clock.resized - clock.decoded) / 1000 });
  } else if (current?.id !== id) return; // of a photo that was replaced
  const begun = performance.now(), found = await explain(ort, session, model, current.images, target);
  Object.assign(answered, { best: best(found.probabilities, BEST), explained: found.explained,
    explain_s: (performance.now() - begun) / 1000 });
  postMessage(answered, found.explained.map(({ heatmap }) => heatmap.buffer));
}

let queue = Promise.resolve(); // the network explains one photo at a time
onmessage = ({ data }) => {
  queue = queue.then(() => answer(data)).catch((error) => postMessage({ id: data.id, error: error.message }));
};
