// Start, keys, and the page's age while the run goes on.

function cycle(name, values, by) {
  const index = values.indexOf(state[name]);
  change({ [name]: values[(index + by + values.length) % values.length] });
}

let overlay = '80';
function press(key) {
  const level = whole(state.opacity, 100), last = LAYERS.length - 1;
  if (key === 'o') {
    if (level) overlay = state.opacity;
    change({ opacity: level ? '0' : overlay });
  } else if (key === '+' || key === '=' || key === '-') {
    change({ opacity: String(Math.min(100, Math.max(0, level + (key === '-' ? -10 : 10)))) });
  } else if (key === 'c') cycle('colormap', Object.keys(HEX), 1);
  else if (key === 't' && SPEC.targets > 1) cycle('k', Array.from({ length: SPEC.targets }, (_, k) => String(k)), 1);
  else if (key === 'm' && last >= 0) cycle('mode', MODES, 1);
  else if ((key === '[' || key === ']') && last >= 0) {
    const layer = Math.min(last, Math.max(0, whole(state.layer, last) + (key === '[' ? -1 : 1)));
    change({ layer: String(layer), mode: state.mode === 'all' ? 'upto' : state.mode });
  } else if (key === 'g' && last >= 0 && opened && opened.canvas) grow();
  else if (key === '?') showHelp();
  else return false;
  return true;
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || $('help').open) return;
  const typing = event.target.matches('input:not([type=range]), select, textarea');
  if (typing) return;
  const isOpen = $('detail').open, index = opened ? shown.indexOf(opened.card) : -1;
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (isOpen && by && !event.target.matches('input')) {
    if (index >= 0 && shown[index + by]) openCard(shown[index + by]);
  } else if (event.key === '/' && !isOpen) document.querySelector('input[name=q]').focus();
  else if (!press(event.key)) return;
  event.preventDefault();
}

function drawHead() {
  const made = Object.fromEntries(FACTS.made), shownState = FACTS.state;
  $('name').textContent = DATA.name;
  const depth = LAYERS.length || (made['layer names'] || '').split(' ').length;
  $('line').textContent = [made.model, made.method, depth === 1 ? '1 layer' : `${depth} layers`,
    `score ${made.score}`, `fused by ${made.fuse}`].join(' · ');
  const share = FACTS.images ? ` ${Math.floor((100 * FACTS.committed) / FACTS.images)} %` : '';
  $('state').textContent = shownState === 'finished' ? 'finished' : `${shownState}${share}`;
  $('state').dataset.state = shownState;
  $('foot').textContent = [`${images(DATA.cards.length)} shown`, DATA.where ? `where ${DATA.where}` : '',
    DATA.sort ? `sorted by ${DATA.sort}` : '', 'heatmaps say what the score is sensitive to, not what is true',
    world ? 'outlines: Natural Earth' : ''].filter(Boolean).join(' · ');
}

// Asks for a newer page as often as pages are written, and never while someone looks closely.
const loaded = Date.now();
function age() {
  const seconds = Date.now() / 1000 - DATA.epoch;
  const late = DATA.live && seconds > 6 * DATA.live + 30;
  $('age').textContent = `written ${duration(seconds)} ago` + (late ? ': nothing writes it any more' : '');
  const due = Date.now() - loaded > 1000 * Math.max(1, DATA.live);
  if (DATA.live && !late && due && !document.hidden && !document.querySelector('dialog[open]') &&
    !document.activeElement.matches('input, select')) location.reload();
}

readState();
const world = FACTS.places?.points.length
  ? new World(FACTS.places.points, DATA.cards, (place) => {
    change({ place: String(place) });
    document.querySelector('.pictures').scrollIntoView({ behavior: 'smooth' });
  })
  : null;
drawHead();
drawTiles();
drawOverview(world, (values) => {
  change(values);
  document.querySelector('.pictures').scrollIntoView({ behavior: 'smooth' });
});
drawBar();

function update(kind) {
  if (kind === 'filter') drawGrid();
  const card = DATA.cards.find((c) => c.id === state.open);
  if (card && (!opened || opened.card !== card)) showCard(card);
  else if (!card && $('detail').open) $('detail').close();
  syncControls();
  redraw();
  drawDetail();
}
listeners.push(update);
$('detail').addEventListener('close', () => {
  const card = opened && opened.card;
  opened = null;
  change({ open: '' });
  if (card && tiles.has(card)) tiles.get(card).node.focus();
});
$('detail').addEventListener('click', (event) => { if (event.target === $('detail')) $('detail').close(); });
addEventListener('keydown', onKey);
addEventListener('hashchange', () => { readState(); update('filter'); });
$('page').hidden = false;
update('filter');
if (world) world.scale();
age();
setInterval(age, 1000);
