// Decode and explain photos, away from the page, which stays responsive.
//
// In: {id, photo: Blob}, then {id, target: class} for other classes of the same photo.
// Out: {loading: 0…1}, {ready: text, why: text}, {failed: text}; {id, ...answer} or {id, error: text}.
// Its address says what WebGPU is for: worker.js?webgpu=auto; see network.js.

import { best } from './explain.js';
import { load } from './network.js';
import { normalize, resize, seenBox } from './preprocess.js';

const BEST = 5;

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
const loaded = load(new URL(import.meta.url).searchParams.get('webgpu'), (message) => postMessage(message));
loaded.catch((error) => postMessage({ failed: error.message }));

async function answer({ id, photo: blob, target = null }) {
  const network = await loaded, { preprocess } = network.model, answered = { id };
  const clock = { start: performance.now() };
  if (blob) {
    const photo = await decode(blob);
    clock.decoded = performance.now();
    const pixels = resize(photo, preprocess);
    photo.close();
    current = { id, images: normalize(pixels, preprocess) };
    clock.resized = performance.now();
    Object.assign(answered, { size: [photo.width, photo.height], box: seenBox(photo, preprocess),
      decode_s: (clock.decoded - clock.start) / 1000, resize_s: (clock.resized - clock.decoded) / 1000 });
  } else if (current?.id !== id) return; // of a photo that was replaced
  const begun = performance.now(), found = await network.explain(current.images, target);
  Object.assign(answered, { best: best(found.probabilities, BEST), explained: found.explained,
    explain_s: (performance.now() - begun) / 1000 });
  postMessage(answered, found.explained.map(({ heatmap }) => heatmap.buffer));
  await network.tryWebGpu(current.images);
}

let queue = Promise.resolve(); // the network explains one photo at a time
onmessage = ({ data }) => {
  queue = queue.then(() => answer(data)).catch((error) => postMessage({ id: data.id, error: error.message }));
};
