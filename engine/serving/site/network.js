// The network of the site, by WebAssembly, or by WebGPU where that agrees and is faster.

import { explain } from './explain.js';

const here = (name) => new URL(name, import.meta.url).href;
const SAME = 1e-3; // largest difference of heatmaps and, relatively, of scores, between the two
const WASM_FILES = ['ort.wasm.min.mjs', 'ort-wasm-simd-threaded.mjs', 'ort-wasm-simd-threaded.wasm'];
const GPU_FILES = ['ort.webgpu.min.mjs', 'ort-wasm-simd-threaded.asyncify.mjs', 'ort-wasm-simd-threaded.asyncify.wasm'];

async function fetched(name) {
  const response = await fetch(here(name)).catch((error) => { throw new Error(`${name} cannot be loaded (${error.message})`); });
  if (!response.ok) throw new Error(`${name} cannot be loaded (${response.status} ${response.statusText})`);
  return response;
}

async function bytesOf(name, tell) {
  const response = await fetched(name), all = Number(response.headers.get('Content-Length')) || Infinity;
  const chunks = [];
  let size = 0;
  for (let reader = response.body.getReader(), part = await reader.read(); !part.done; part = await reader.read()) {
    chunks.push(part.value);
    size += part.value.length;
    tell({ loading: Math.min(1, size / all) });
  }
  return new Uint8Array(await new Blob(chunks).arrayBuffer());
}

// webgpu: 'auto', 'always' or 'never'; null if the site's ONNX Runtime has none.
// tell({loading: 0…1}), and tell({ready: what runs the network, why}), again when that changes.
export async function load(webgpu, tell) {
  const files = webgpu ? GPU_FILES : WASM_FILES;
  const ort = await import(`./ort/${files[0]}`).catch(() => {
    throw new Error(`ONNX Runtime is missing: copy ${files[0]}, ${files[1]} and ${files[2]} from the folder dist of the `
      + 'npm package onnxruntime-web into ort/');
  });
  ort.env.wasm.wasmPaths = here('ort/');
  ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  const model = await (await fetched('model.json')).json(), bytes = await bytesOf('model.onnx', tell);
  const create = (provider) => ort.InferenceSession.create(bytes, { executionProviders: [provider], logSeverityLevel: 3 });
  const cpu = await create('wasm');
  let gpu = null, missing = '';
  if (webgpu === 'auto' || webgpu === 'always') {
    try {
      if (!await navigator.gpu?.requestAdapter()) throw new Error('this browser offers no adapter');
      gpu = await create('webgpu');
    } catch (error) {
      missing = `WebGPU cannot be used: ${error.message}`;
      if (webgpu === 'always') throw new Error(missing);
    }
  }
  let session = webgpu === 'always' ? gpu : cpu, untried = webgpu === 'auto' && gpu !== null;

  function take(chosen, why = '') {
    session = chosen;
    const threads = ort.env.wasm.numThreads;
    tell({ ready: chosen === gpu ? 'WebGPU' : `${threads} thread${threads === 1 ? '' : 's'}`, why });
  }
  take(session, missing);

  async function timed(chosen, images) {
    const begun = performance.now(), { explained } = await explain(ort, chosen, model, images);
    return { explained, s: (performance.now() - begun) / 1000 };
  }

  return {
    model,
    async explain(images, target) {
      try {
        return await explain(ort, session, model, images, target);
      } catch (error) {
        if (session !== gpu || webgpu === 'always') throw error;
        take(cpu, `WebGPU failed: ${error.message}`); // as when its device was lost
        return explain(ort, cpu, model, images, target);
      }
    },
    // Once: explain by both, and choose.
    async tryWebGpu(images) {
      if (!untried) return;
      untried = false;
      try {
        await timed(gpu, images); // compiles its shaders
        const byCpu = await timed(cpu, images), byGpu = await timed(gpu, images);
        const error = difference(byCpu.explained, byGpu.explained), agrees = error <= SAME;
        const times = `A photo takes ${byGpu.s.toPrecision(2)} s by WebGPU, ${byCpu.s.toPrecision(2)} s by WebAssembly.`;
        take(agrees && byGpu.s < byCpu.s ? gpu : cpu, agrees ? times : `WebGPU differs by ${error.toPrecision(2)}, so WebAssembly goes on.`);
      } catch (error) { take(cpu, `WebGPU failed: ${error.message}`); }
    },
  };
}

// Largest difference between two explanations of a photo; infinite for other classes, or no number.
function difference(expected, found) {
  let worst = 0;
  const differ = (a, b, scale) => {
    const error = Math.abs(a - b) / scale;
    worst = error <= worst ? worst : Number.isNaN(error) ? Infinity : error;
  };
  expected.forEach(({ target, score, heatmap }, k) => {
    const scale = heatmap.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-9);
    differ(target === found[k].target ? 0 : Infinity, 0, 1);
    differ(score, found[k].score, Math.max(1, Math.abs(score)));
    heatmap.forEach((value, i) => differ(value, found[k].heatmap[i], scale));
  });
  return worst;
}
