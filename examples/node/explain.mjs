// Explain a photo in Node.js by the files of a site that combicam wrote.
//
//     combicam export -m MODEL --web site/
//     cd examples/node && npm install
//     node explain.mjs ../../site photo.jpg [class]
//
// Prints the best classes, and writes the heatmap over what the network saw as photo.heatmap.png.

import { readFile } from 'node:fs/promises';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import * as ort from 'onnxruntime-node';
import sharp from 'sharp';

const BEST = 5;
const GLOW = [253, 231, 37];

async function main(site, file, target) {
  const at = (name) => path.resolve(site, name);
  const { resize, normalize } = await import(pathToFileURL(at('preprocess.js')));
  const { explain, best } = await import(pathToFileURL(at('explain.js')));
  const model = JSON.parse(await readFile(at('model.json'), 'utf8'));
  const session = await ort.InferenceSession.create(at('model.onnx'));

  const pixels = resize(await decode(file), model.preprocess);
  const images = normalize(pixels, model.preprocess);
  const begun = performance.now();
  const { probabilities, explained: [found] } = await explain(ort, session, model, images, target);
  const taken = Math.round(performance.now() - begun);

  const nameOf = (index) => model.classes?.names[index] || `class ${index}`;
  for (const [index, p] of best(probabilities, BEST)) console.log(`${(100 * p).toFixed(1).padStart(6)} %  ${index}  ${nameOf(index)}`);
  const drawn = `${file.replace(/\.[^.]*$/, '')}.heatmap.png`;
  await draw(pixels, found.heatmap, model.preprocess.input_size, drawn);
  console.log(`explained: ${nameOf(found.target)}, ${taken} ms, ${drawn}`);
}

// Upright, on white, 8 bits, with the stored colours: as the site's page decodes photos.
async function decode(file) {
  const upright = sharp(file, { ignoreIcc: true }).autoOrient().flatten({ background: 'white' }).toColourspace('srgb');
  const { data, info } = await upright.ensureAlpha().raw().toBuffer({ resolveWithObject: true });
  const { width, height } = info;
  return { width, height, rows: (top, bottom) => data.subarray(4 * width * top, 4 * width * bottom) };
}

async function draw(pixels, heatmap, [height, width], file) {
  const channels = pixels.length / heatmap.length, out = new Uint8Array(3 * heatmap.length);
  heatmap.forEach((heat, i) => {
    for (let c = 0; c < 3; c++) {
      const value = pixels[channels * i + (channels === 3 ? c : 0)];
      out[3 * i + c] = Math.round(value + (GLOW[c] - value) * 0.8 * Math.min(1, Math.max(0, heat)) ** 0.7);
    }
  });
  await sharp(out, { raw: { width, height, channels: 3 } }).png().toFile(file);
}

const [site, file, target] = process.argv.slice(2);
if (!file || (target !== undefined && !/^\d+$/.test(target))) {
  console.error('explain: expected a site, a photo and perhaps the number of a class: node explain.mjs ../../site photo.jpg 281');
  process.exitCode = 2;
} else {
  await main(site, file, target === undefined ? null : Number(target)).catch((error) => {
    console.error(`explain: ${error.message}`);
    process.exitCode = 1;
  });
}
