// The bar of filters, and the cards.

function bounds(label, low, high, unit) {
  const box = (name, hint) => el('input', { type: 'number', name, min: 0, placeholder: hint,
    'aria-label': `${label} ${hint}`, oninput: (event) => change({ [name]: event.target.value }) });
  return el('div', { class: 'field' }, el('span', { text: `${label}, ${unit}` }),
    el('div', { class: 'pair' }, box(low, 'from'), box(high, 'to')));
}

function filterControls() {
  const cards = DATA.cards, classes = [...new Set(cards.map(answer).filter(Boolean))].sort();
  const statuses = [...new Set(cards.map((card) => card.status))].sort();
  const hasScores = cards.some((card) => card.scores);
  const hasErrors = cards.some((card) => card.error_km !== undefined);
  const orders = Object.entries(ORDERS).filter(([name]) => hasErrors || !name.startsWith('error'));
  return [
    field('Search', el('input', { type: 'search', name: 'q', placeholder: 'name, class, error', autocomplete: 'off',
      oninput: (event) => change({ q: event.target.value }) })),
    classes.length > 1 ? select('klass', 'Class', [['', `all ${classes.length}`], ...classes.map((c) => [c, c])]) : null,
    statuses.length > 1 ? select('status', 'Status', [['', 'all'], ...statuses.map((s) => [s, words(s)])]) : null,
    hasScores ? bounds('Score', 'low', 'high', '%') : null,
    hasErrors ? bounds('Error', 'near', 'far', 'km') : null,
    select('sort', 'Order', orders.map(([name, [text]]) => [name, text])),
  ].filter(Boolean);
}

function drawBar() {
  set($('bar'), {}, [
    el('div', { class: 'controls' }, ...filterControls()),
    DATA.cards.some((card) => card.box) ? el('div', { class: 'controls look' }, ...lookControls()) : null,
    el('div', { class: 'count' }, el('span', { id: 'count' }),
      el('button', { type: 'button', id: 'reset', text: 'clear filters',
        onclick: () => change(Object.fromEntries(FILTERS.map((name) => [name, NEUTRAL[name]]))) }),
      el('button', { type: 'button', class: 'keys', text: 'keys ?', onclick: () => showHelp() }))]);
}

const picture = (card) => photoWithMap(card.photo
  ? el('img', { src: card.photo, alt: card.id, draggable: 'false' })
  : el('div', { class: 'gone', text: card.gone }), card.size, card.box);

async function drawMap(canvas, card) {
  const key = JSON.stringify([look(), state.colormap, state.glow]);
  if (canvas.wanted === key) return;
  canvas.wanted = key;
  const parts = await unpack(card);
  if (canvas.wanted === key) paint(canvas, heat(parts, look(), drawnSize(card)), colours(state.colormap), state.glow === '1');
}

const tiles = new Map(); // card -> {node, canvas}
const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    entry.target.near = entry.isIntersecting;
    if (entry.isIntersecting) drawTile(entry.target.card);
  }
}, { rootMargin: '300px' });

function drawTile(card) {
  const { canvas } = tiles.get(card);
  if (canvas) drawMap(canvas, card);
}

function caption(card) {
  if (card.status !== 'ok') return [el('div', { class: 'row1' }, el('b', { text: words(card.status) }))];
  const where = card.error_km !== undefined ? `${kilometres(card.error_km)} off`
    : card.lat !== undefined ? position(card.lat, card.lon) : '';
  const sure = card.places?.length ? card.places[0].probability : card.scores[0];
  const asked = FACTS.asked.length && FACTS.asked[0] !== 'top'
    ? `${targetName(card.targets[0], 0)}: ${percent(card.scores[0])}` : '';
  return [
    el('div', { class: 'row1' }, el('b', { text: answer(card), title: answer(card) }), el('span', { text: percent(sure) })),
    el('div', { class: 'track', '--part': sure || 0 }),
    asked ? el('div', { class: 'row2', text: asked, title: asked }) : null,
    where ? el('div', { class: 'row2', text: where }) : null,
  ];
}

function cardNode(card) {
  const drawn = card.box ? picture(card) : null;
  const node = el('button', { type: 'button', class: `card ${card.status === 'ok' ? '' : 'failed'}`, tabindex: '-1',
    onclick: () => openCard(card), onkeydown: moveFocus },
    el('div', { class: 'frame' }, drawn ? drawn.node : el('div', { class: 'gone', text: card.error || words(card.status) })),
    el('div', { class: 'text' }, ...caption(card),
      el('div', { class: 'row3', text: card.id, title: card.id }),
      card.gone && card.photo ? el('div', { class: 'row2 warn', text: 'photo changed' }) : null));
  node.card = card;
  return { node, canvas: drawn ? drawn.canvas : null };
}

let shown = [];
function drawGrid() {
  const before = shown;
  shown = shownCards();
  for (const card of DATA.cards) {
    if (!tiles.has(card)) {
      tiles.set(card, cardNode(card));
      near.observe(tiles.get(card).node);
    }
  }
  if (shown.length !== before.length || shown.some((card, i) => card !== before[i])) {
    $('grid').replaceChildren(...shown.map((card) => tiles.get(card).node));
  }
  shown.forEach((card, i) => { tiles.get(card).node.tabIndex = i ? -1 : 0; });
  $('empty').hidden = shown.length > 0;
  const all = DATA.cards.length, of = FACTS.matching > all ? `, drawn from ${number(FACTS.matching)} rows` : '';
  const place = state.place === '' ? '' : ` at ${FACTS.places?.points[Number(state.place)]?.[3] || 'one place'}`;
  $('count').textContent = `${number(shown.length)} of ${images(all)}${place}${of}`;
  $('reset').hidden = FILTERS.every((name) => state[name] === NEUTRAL[name]);
}

function redraw() {
  for (const { node } of tiles.values()) if (node.near && node.isConnected) drawTile(node.card);
}

// Arrows move among cards as they lie on the screen.
function moveFocus(event) {
  const index = shown.indexOf(event.currentTarget.card);
  const columns = Math.max(1, getComputedStyle($('grid')).gridTemplateColumns.split(' ').length);
  const step = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns,
    Home: -index, End: shown.length - 1 - index }[event.key];
  if (step === undefined) return;
  event.preventDefault();
  const next = shown[Math.min(shown.length - 1, Math.max(0, index + step))];
  tiles.get(next).node.focus();
}
