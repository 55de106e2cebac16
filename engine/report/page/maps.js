// The maps of a card: unpacked, and how large they are drawn.

const SIDE = 128; // longest side of what is drawn; the browser smooths it further

async function inflated(text) {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// The parts of a card, as heat.js takes them; their values are bytes.
const unpackedMaps = new WeakMap();
function unpack(card) {
  if (!unpackedMaps.has(card)) unpackedMaps.set(card, inflated(card.maps.data).then((bytes) => {
    const parts = [], K = card.targets.length;
    let start = 0;
    for (const [h, w] of card.maps.grids) {
      const maps = [], layer = parts.length - 1;
      for (let k = 0; k < K; k++, start += h * w) {
        const map = bytes.subarray(start, start + h * w);
        for (let y = 0; y < h; y++) for (let x = 1; x < w; x++) map[y * w + x] += map[y * w + x - 1];
        maps.push(map);
      }
      parts.push({ h, w, maps, units: maps.map((_, k) => (layer < 0 ? 1 : card.maps.highs[layer * K + k]) / 255) });
    }
    return parts;
  }));
  return unpackedMaps.get(card);
}

// What is drawn is what the network saw: its shape on the photo.
function drawnSize(card) {
  const width = card.box[2] * card.size[0], height = card.box[3] * card.size[1];
  const scale = SIDE / Math.max(width, height);
  return [Math.max(1, Math.round(height * scale)), Math.max(1, Math.round(width * scale))];
}
