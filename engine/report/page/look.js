// How maps are looked at: opacity, colours, layers; and a photo with its map.

const field = (label, control, kind) => el('label', { class: `field ${kind || ''}` },
  typeof label === 'string' ? el('span', { text: label }) : label, control);

function select(name, label, options) {
  const control = el('select', { name, onchange: (event) => change({ [name]: event.target.value }) },
    ...options.map(([value, text]) => el('option', { value, text })));
  return field(label, control);
}

function segments(name, label, options) {
  return el('div', { class: 'field' }, el('span', { text: label }),
    el('div', { class: 'segments', role: 'group', 'aria-label': label }, ...options.map(([value, text, title]) =>
      el('button', { type: 'button', 'data-name': name, 'data-value': value, text, title,
        onclick: () => change({ [name]: value }) }))));
}

const layerControls = () => (!LAYERS.length ? [] : [
  segments('mode', 'Layers', [['all', 'Fused', 'all layers, fused'],
    ['upto', 'Up to', 'all layers up to this one, fused'], ['only', 'Only', 'this layer alone']]),
  field(el('span', { class: 'layername' }), el('input', { type: 'range', name: 'layer', min: 0, max: LAYERS.length - 1, 'aria-label': 'layer',
    oninput: (event) => change({ layer: event.target.value, mode: state.mode === 'all' ? 'upto' : state.mode }) }), 'wide layer'),
]);

const lookControls = () => [
  ...layerControls(),
  SPEC.targets > 1 ? select('k', 'Target', Array.from({ length: SPEC.targets }, (_, k) => [String(k), `${k + 1} of ${SPEC.targets}`])) : null,
  field('Opacity', el('input', { type: 'range', name: 'opacity', min: 0, max: 100,
    oninput: (event) => change({ opacity: event.target.value }) }), 'wide'),
  select('colormap', 'Colours', Object.keys(HEX).map((name) => [name, name])),
  segments('glow', 'Cold places', [['1', 'clear', 'where the map is low the photo shows'], ['0', 'covered', 'one opacity everywhere']]),
  el('div', { class: 'field scale' }, el('span', { text: 'low to high' }), el('canvas', { width: 256, height: 1, 'aria-label': 'colour scale' })),
].filter(Boolean);

// Controls show the state, wherever they are (the bar, the open picture).
function syncControls() {
  for (const control of document.querySelectorAll('select[name], input[name]')) {
    if (control.name in state && control.value !== state[control.name]) control.value = state[control.name];
  }
  for (const button of document.querySelectorAll('[data-name]')) {
    button.setAttribute('aria-pressed', String(state[button.dataset.name] === button.dataset.value));
  }
  document.documentElement.style.setProperty('--opacity', whole(state.opacity, 100) / 100);
  const table = colours(state.colormap);
  for (const scale of document.querySelectorAll('.scale canvas')) {
    paint(scale, { H: 1, W: 256, values: Float32Array.from({ length: 256 }, (_, i) => i / 255) }, table, false);
  }
  const { layer, mode } = look();
  for (const name of document.querySelectorAll('.layername')) {
    name.textContent = mode === 'all' ? 'shallow to deep' : `${LAYERS[layer]}, ${layer + 1} of ${LAYERS.length}`;
  }
}

// A photo and its map on the part that the network saw: box has its left, top, width and height.
function photoWithMap(photo, [width, height], box) {
  const canvas = el('canvas', { 'aria-hidden': 'true' }), [left, top, w, h] = box;
  const whole = w > 0.999 && h > 0.999;
  const seen = el('div', { class: whole ? 'seen' : 'seen part', '--left': left, '--top': top, '--width': w, '--height': h }, canvas);
  return { canvas, node: el('div', { class: 'photo', '--aspect': width / height }, photo, seen) };
}

// The layers as columns: one click shows a layer, or all up to it.
function layerStrip() {
  return !LAYERS.length ? null : el('div', { class: 'strip' },
    el('h3', { text: 'Layers, shallow to deep' + (additive() ? ': share of the sum' : '') }),
    el('div', { class: 'columns' }, ...LAYERS.map((name, l) => el('button', { type: 'button', title: name, 'aria-label': name,
      onclick: () => change({ layer: String(l), mode: state.mode === 'all' ? 'upto' : state.mode }) }, el('i')))),
    el('button', { type: 'button', class: 'play', text: '▶ let it grow', onclick: () => grow() }));
}
const additive = () => ['sum', 'mean'].includes(SPEC.fuse) && PER_LAYER === 'none';

function drawStrip(strip, parts, size) {
  const { layer, mode, k } = look();
  const shares = additive() ? layerShares(parts, Math.min(k, parts[0].maps.length - 1), size) : LAYERS.map(() => 1);
  const most = Math.max(...shares, 1e-9);
  strip.querySelectorAll('.columns button').forEach((button, l) => {
    button.style.setProperty('--part', shares[l] / most);
    button.title = additive() ? `${LAYERS[l]}: ${percent(shares[l])} of the sum` : LAYERS[l];
    button.classList.toggle('on', mode === 'all' || (mode === 'upto' ? l <= layer : l === layer));
  });
}

let growing = 0;
function grow() {
  clearInterval(growing);
  let layer = 0;
  const next = () => {
    change({ mode: 'upto', layer: String(layer) });
    if (++layer >= LAYERS.length || !document.querySelector('.strip')?.offsetParent) clearInterval(growing);
  };
  growing = setInterval(next, Math.max(80, 1600 / LAYERS.length));
  next();
}
