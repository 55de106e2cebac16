// The page: photos in, classes and heatmaps out.

const INPUT = DATA.input_size;
let photo = null; // what is shown: {id, name, url, canvas, strip, best, explained, target}
let asked = null; // what was chosen last: {id, name, url}
let count = 0;
let worker = null;

function tell(text) { $('status').textContent = text; }

function complain(text) {
  $('trouble').textContent = text;
  $('trouble').hidden = !text;
}

function choose(blob, name) {
  complain('');
  if (asked && asked.url !== photo?.url) URL.revokeObjectURL(asked.url);
  asked = { id: ++count, name, url: URL.createObjectURL(blob) };
  $('stage').setAttribute('aria-busy', 'true');
  tell(`Explaining ${name} …`);
  worker.postMessage({ id: asked.id, photo: blob });
}

async function chooseSample({ file, name }) {
  try {
    const response = await fetch(file);
    if (!response.ok) throw new Error(`${response.status} ${response.statusText}`);
    choose(await response.blob(), name);
  } catch (error) {
    complain(`${name}: the sample cannot be loaded (${error.message})`);
  }
}

// A network's maps as heat.js takes them. Heatmaps that the network leaves unnormalised are scaled.
function toParts({ heatmap, layers }) {
  const [h, w] = INPUT, isUnit = heatmap.every((v) => v >= 0 && v <= 1);
  const part = (h_, w_, values) => ({ h: h_, w: w_, maps: [values], units: [1] });
  return [part(h, w, isUnit ? heatmap : minMax(heatmap)), ...layers.map((map) => part(map.h, map.w, map.values))];
}

function classList() {
  return el('ol', { class: 'targets' }, ...photo.best.map(([target, probability]) => el('li', {},
    el('button', { type: 'button', class: 'row', 'data-target': target, onclick: () => explainClass(target) },
      el('span', { class: 'name', text: className(target), title: className(target) }),
      el('span', { class: 'track', '--part': probability }),
      el('span', { class: 'amount', text: percent(probability) })))));
}

const seconds = (s) => (s < 0.0995 ? `${Math.round(1000 * s)} ms` : `${s.toFixed(2)} s`);

function tellClass() {
  const [target, probability] = photo.best.find(([other]) => other === photo.target) || photo.best[0];
  tell(`${photo.name}: ${className(target)}, ${percent(probability)}. Explained in ${seconds(photo.explained.get(photo.target).seconds)}.`);
}

function explainClass(target) {
  photo.target = target;
  if (photo.explained.has(target)) tellClass();
  else {
    tell(`Explaining ${className(target)} …`);
    worker.postMessage({ id: photo.id, target });
  }
  draw();
}

function showPhoto(found) {
  if (photo) URL.revokeObjectURL(photo.url);
  photo = { ...asked, best: found.best, explained: new Map(), target: found.explained[0].target };
  const { node, canvas } = photoWithMap(el('img', { src: photo.url, alt: photo.name, draggable: 'false' }), found.size, found.box);
  photo.canvas = canvas;
  photo.strip = layerStrip();
  $('stage').replaceChildren(node);
  $('classes').replaceChildren(el('h2', { text: 'Best classes' }, el('span', { text: 'choose one to explain it' })), classList());
  $('strip').replaceChildren(...[photo.strip].filter(Boolean));
  $('facts').replaceChildren(...[['photo', `${photo.name}, ${found.size[0]} × ${found.size[1]} px`],
    ['decoded', seconds(found.decode_s)], ['resized', seconds(found.resize_s)]]
    .flatMap(([name, value]) => [el('dt', { text: name }), el('dd', { text: value })]));
  $('result').hidden = false;
  $('stage').removeAttribute('aria-busy');
}

function draw() {
  if (!photo) return;
  for (const button of document.querySelectorAll('[data-target]')) {
    button.setAttribute('aria-pressed', String(Number(button.dataset.target) === photo.target));
  }
  const parts = photo.explained.get(photo.target)?.parts;
  photo.canvas.hidden = !parts;
  if (!parts) return;
  paint(photo.canvas, heat(parts, look(), INPUT), colours(state.colormap), state.glow === '1');
  if (photo.strip) drawStrip(photo.strip, parts, INPUT);
}

function receive({ data }) {
  if ('loading' in data) $('state').textContent = `loading the network, ${Math.round(100 * data.loading)} %`;
  else if ('ready' in data) {
    $('state').textContent = `ready, ${data.ready}`;
    $('state').dataset.state = 'ready';
    $('why').textContent = data.why;
  } else if ('failed' in data) {
    $('state').textContent = 'not ready';
    $('state').dataset.state = 'failed';
    complain(data.failed);
  } else if (data.error) {
    if (data.id !== asked.id) return;
    $('stage').removeAttribute('aria-busy');
    tell('');
    complain(`${asked.name}: ${data.error}`);
  } else {
    if (data.size && data.id !== asked.id) return;
    if (data.size) showPhoto(data);
    if (data.id !== photo.id) return;
    for (const found of data.explained) photo.explained.set(found.target, { parts: toParts(found), seconds: data.explain_s });
    if (photo.explained.has(photo.target)) tellClass();
    draw();
  }
}

// Of a blob, so that the page's content security policy holds for the worker, too.
function startWorker() {
  const url = new URL('worker.js', document.baseURI);
  if (DATA.webgpu) url.searchParams.set('webgpu', new URLSearchParams(location.search).get('webgpu') || 'auto');
  const source = `import ${JSON.stringify(url.href)};`;
  worker = new Worker(URL.createObjectURL(new Blob([source], { type: 'text/javascript' })), { type: 'module' });
  worker.onmessage = receive;
  worker.onerror = (event) => receive({ data: { failed: event.message || 'worker.js cannot be loaded' } });
}

function takeFiles() {
  $('file').addEventListener('change', (event) => {
    const [file] = event.target.files;
    if (file) choose(file, file.name);
    event.target.value = ''; // the same file may be chosen again
  });
  for (const kind of ['dragenter', 'dragover', 'dragleave', 'drop']) {
    addEventListener(kind, (event) => {
      event.preventDefault();
      document.body.classList.toggle('over-page', kind === 'dragenter' || kind === 'dragover');
      const [file] = (kind === 'drop' && event.dataTransfer.files) || [];
      if (file) choose(file, file.name);
      else if (kind === 'drop') complain('what was dropped is not a file; save the photo first');
    });
  }
}

function start() {
  startWorker();
  takeFiles();
  $('name').textContent = DATA.name;
  $('line').textContent = DATA.line;
  $('note').textContent = DATA.note;
  $('samples').append(...DATA.samples.map((sample) => el('button', { type: 'button', class: 'sample', onclick: () => chooseSample(sample) },
    el('img', { src: sample.file, alt: sample.name, loading: 'lazy', draggable: 'false' }))));
  $('look').append(...lookControls());
  readState();
  listeners.push(() => { syncControls(); draw(); });
  addEventListener('hashchange', () => { readState(); syncControls(); draw(); });
  syncControls();
  $('start').remove();
  $('page').hidden = false;
}

if (location.protocol !== 'file:') start(); // from a disk, browsers load neither workers nor networks
