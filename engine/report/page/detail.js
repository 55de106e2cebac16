// One image, large: its targets, layers, and all that the run tells of it.

let opened = null; // {card, canvas, strip}

function openCard(card) { change({ open: card.id }); }

// What was asked for, where that was not the best class.
function targetName(target, k) {
  const asked = FACTS.asked[k];
  if (!asked || asked === 'top') return className(target);
  return target < 0 ? asked : `${className(target)} (${asked})`;
}

function targetList(card) {
  return el('ol', { class: 'targets' }, ...card.targets.map((target, k) => el('li', {},
    el('button', { type: 'button', class: 'row', 'data-name': 'k', 'data-value': String(k), disabled: card.targets.length < 2,
      onclick: () => change({ k: String(k) }) },
    el('span', { class: 'name', text: targetName(target, k), title: targetName(target, k) }),
    el('span', { class: 'track', '--part': card.scores[k] || 0 }),
    el('span', { class: 'amount', text: percent(card.scores[k]) })))));
}

function placeList(card) {
  if (!card.places || !card.places.length) return null;
  return el('div', {}, el('h3', { text: 'Most probable places' }), bars(card.places.map((place) => {
    const label = FACTS.names[place.class] || position(place.lat, place.lon);
    return { label, value: place.probability, text: percent(place.probability) };
  }), 1));
}

function factRows(card) {
  const rows = [['name', card.id], ['status', words(card.status)], ['error', card.error],
    ['photo', card.size[0] ? `${card.size[0]} × ${card.size[1]} px` : null], ['note', card.gone]];
  if (card.lat !== undefined) rows.push(['predicted', position(card.lat, card.lon)]);
  if (card.true_lat !== undefined) rows.push(['true', position(card.true_lat, card.true_lon)]);
  if (card.error_km !== undefined) rows.push(['off by', kilometres(card.error_km)]);
  if (card.ranges) {
    const k = Math.min(look().k, card.ranges.length - 1);
    rows.push(['map before scaling', card.flat[k] ? 'flat' : `${short(card.ranges[k][0])} to ${short(card.ranges[k][1])}`]);
  }
  for (const [name, value] of Object.entries(card.more)) {
    const text = typeof value !== 'number' ? value : name.startsWith('density_') ? percent(value) : short(value);
    rows.push([name.replace(/^density_(.*)km$/, 'probability within $1 km').replaceAll('_', ' '), text]);
  }
  return rows.filter(([, value]) => value !== null && value !== undefined && value !== '');
}

function showCard(card) {
  const drawn = card.box ? picture(card) : null, index = shown.indexOf(card);
  const step = (by, text, label) => el('button', { type: 'button', class: 'step', text, 'aria-label': label,
    disabled: index < 0 || !shown[index + by], onclick: () => openCard(shown[index + by]) });
  const strip = drawn ? layerStrip() : null;
  $('detail').replaceChildren(
    el('div', { class: 'stage' }, drawn ? drawn.node : el('div', { class: 'gone', text: card.error || words(card.status) })),
    el('div', { class: 'side' },
      el('div', { class: 'top' }, el('h2', { text: answer(card) || words(card.status), tabindex: '-1', autofocus: true }), step(-1, '←', 'previous'), step(1, '→', 'next'),
        el('button', { type: 'button', class: 'step', text: '×', 'aria-label': 'close', onclick: () => $('detail').close() })),
      drawn ? el('div', {}, el('h3', { text: 'Explained' }), targetList(card)) : null, placeList(card), strip,
      drawn ? el('div', { class: 'controls look' }, ...lookControls()) : null,
      el('dl', {}, ...factRows(card).flatMap(([name, value]) => [el('dt', { text: name }), el('dd', { text: value })]))));
  opened = { card, canvas: drawn && drawn.canvas, strip };
  if (!$('detail').open) $('detail').showModal();
}

async function drawDetail() {
  if (!opened || !opened.canvas) return;
  drawMap(opened.canvas, opened.card);
  const { card, strip } = opened, parts = strip ? await unpack(card) : null;
  if (strip) drawStrip(strip, parts, drawnSize(card));
}

const KEYS = [['arrows', 'move among the images'], ['Enter', 'open'], ['Esc', 'close'],
  ['← →', 'open: the one before, the next'], ['o', 'overlay on or off'], ['− +', 'opacity'],
  ['[ ]', 'layer before, next'], ['m', 'fused, up to a layer, one layer'], ['g', 'open: let the map grow'],
  ['t', 'next target'], ['c', 'next colours'], ['/', 'search'], ['?', 'this list']];

function showHelp() {
  $('help').replaceChildren(el('h2', { text: 'Keys' }),
    el('dl', {}, ...KEYS.filter(([key]) => LAYERS.length || !['[ ]', 'm', 'g'].includes(key))
      .flatMap(([key, text]) => [el('dt', {}, el('kbd', { text: key })), el('dd', { text })])),
    el('button', { type: 'button', text: 'close', onclick: () => $('help').close() }));
  $('help').showModal();
}
