// Run an exported network on one photo. For browsers and Node.js.

// targets: int64 [1,K]: a class K times, or without one the K best.
export async function explain(ort, session, model, images, target = null) {
  const { spec, signature, layers, outputs } = model, [H, W] = signature.input_size, K = spec.targets;
  const wanted = BigInt64Array.from({ length: K }, (_, k) => BigInt(target === null ? -1 - k : target));
  const found = await session.run({
    images: new ort.Tensor('float32', images, [1, images.length / (H * W), H, W]),
    targets: new ort.Tensor('int64', wanted, [1, K]),
  });
  const kept = layers.filter(({ name }) => outputs.includes(`map:${name}`));
  const part = (tensor, k) => tensor.data.slice((k * tensor.size) / K, ((k + 1) * tensor.size) / K);
  const explained = Array.from({ length: target === null ? K : 1 }, (_, k) => ({
    target: Number(found.classes.data[k]),
    score: found.scores.data[k],
    heatmap: part(found.heatmaps, k), // float32 [H,W]
    layers: kept.map(({ name }) => {
      const map = found[`map:${name}`];
      return { h: map.dims.at(-2), w: map.dims.at(-1), values: part(map, k) };
    }),
  }));
  return { probabilities: probabilities(found.logits.data, spec.score), explained };
}

// Sigmoids where labels do not exclude each other (or there is one logit), else a softmax.
export function probabilities(logits, score) {
  if (logits.length === 1 || score.endsWith('sigmoid')) return Float64Array.from(logits, (z) => 1 / (1 + Math.exp(-z)));
  const most = logits.reduce((a, b) => Math.max(a, b)), powers = Float64Array.from(logits, (z) => Math.exp(z - most));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((p) => p / sum);
}

// [class, probability] of the best classes, best first.
export const best = (values, count) => Array.from(values.entries()).sort((a, b) => b[1] - a[1]).slice(0, count);
