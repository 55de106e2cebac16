// What is chosen: filters, order and look. It lies in the page's address, so a reload keeps it.

const NEUTRAL = { q: '', klass: '', status: '', place: '', low: '', high: '', near: '', far: '', sort: 'chosen',
  colormap: DATA.colormap, opacity: '80', glow: '1', k: '0', mode: 'all', layer: String(Math.max(0, LAYERS.length - 1)),
  open: '' };
const FILTERS = ['q', 'klass', 'status', 'place', 'low', 'high', 'near', 'far', 'sort'];
const MODES = ['all', 'upto', 'only'];
const state = { ...NEUTRAL };
const listeners = [];

function whole(text, most) {
  const value = Number.parseInt(text, 10);
  return Number.isFinite(value) ? Math.min(most, Math.max(0, value)) : 0;
}

function readState() {
  Object.assign(state, NEUTRAL);
  for (const [name, value] of new URLSearchParams(location.hash.slice(1))) {
    if (name in NEUTRAL) state[name] = value;
  }
  if (!(state.colormap in HEX)) state.colormap = DATA.colormap;
  if (!MODES.includes(state.mode) || !LAYERS.length) state.mode = 'all';
}

// what: 'filter' when the choice of images changes, 'look' when only their drawing does.
function change(values) {
  const isFilter = FILTERS.some((name) => name in values && values[name] !== state[name]);
  Object.assign(state, values);
  const kept = Object.entries(state).filter(([name, value]) => value !== NEUTRAL[name]);
  history.replaceState(null, '', `#${new URLSearchParams(kept)}`);
  for (const listener of listeners) listener(isFilter ? 'filter' : 'look', values);
}

const look = () => ({ mode: state.mode, layer: whole(state.layer, LAYERS.length - 1),
  k: whole(state.k, SPEC.targets - 1) });

function passes(card) {
  const text = `${card.id}\n${answer(card)}\n${card.status}\n${card.error || ''}`.toLowerCase();
  const score = card.scores ? 100 * card.scores[0] : null;
  const between = (value, low, high) => (low === '' && high === '') || (value !== null && value !== undefined &&
    (low === '' || value >= Number(low)) && (high === '' || value <= Number(high)));
  return text.includes(state.q.toLowerCase()) && (!state.klass || answer(card) === state.klass) &&
    (!state.status || card.status === state.status) &&
    (state.place === '' || card.place === Number(state.place)) &&
    between(score, state.low, state.high) && between(card.error_km, state.near, state.far);
}

const ORDERS = {
  chosen: ['as chosen', null],
  score_down: ['score, high first', (c) => (c.scores ? -c.scores[0] : null)],
  score_up: ['score, low first', (c) => (c.scores ? c.scores[0] : null)],
  error_down: ['error, far first', (c) => (c.error_km === undefined ? null : -c.error_km)],
  error_up: ['error, near first', (c) => (c.error_km === undefined ? null : c.error_km)],
  klass: ['class', (c) => answer(c) || null],
  status: ['status', (c) => (c.status === 'ok' ? null : c.status)],
  id: ['name', (c) => c.id],
};

function shownCards() {
  const key = (ORDERS[state.sort] || ORDERS.chosen)[1], shown = DATA.cards.filter(passes);
  if (!key) return shown;
  // Rows without a value come last.
  const compare = (a, b) => (a === b ? 0 : a === null ? 1 : b === null ? -1 : a < b ? -1 : 1);
  return shown.map((card) => [key(card), card]).sort((a, b) => compare(a[0], b[0])).map(([, card]) => card);
}
