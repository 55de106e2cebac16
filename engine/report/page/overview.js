// The head of the page: figures, the map, and small charts of the run.

function tile(label, value, note, kind) {
  return el('div', { class: `tile ${kind || ''}` }, el('div', { class: 'value', text: value }),
    el('div', { class: 'label', text: label }), note ? el('div', { class: 'note', text: note }) : null);
}

function drawTiles() {
  const ok = FACTS.statuses.ok || 0, failed = FACTS.matching - ok, speed = FACTS.speed;
  const tiles = [
    tile('images', number(FACTS.committed),
      FACTS.committed < FACTS.images ? `of ${number(FACTS.images)}` : null),
  ];
  if (FACTS.filtered) tiles.push(tile('match the filter', number(FACTS.matching)));
  tiles.push(tile('explained', number(ok)));
  tiles.push(tile('failed', number(failed),
    failed ? percent(failed / FACTS.matching) : null, failed ? 'bad' : ''));
  if (FACTS.scores.median !== null) tiles.push(tile('median score', percent(FACTS.scores.median)));
  if (FACTS.accuracy && FACTS.accuracy.rows) {
    tiles.push(tile('median error', kilometres(FACTS.accuracy.median_km)));
  }
  if (speed.images_per_s) {
    const slow = speed.images_per_s < 1;
    tiles.push(tile(slow ? 's an image' : 'images/s', short(slow ? 1 / speed.images_per_s : speed.images_per_s),
      speed.bottleneck ? `slowest: ${speed.bottleneck}` : null));
  }
  if (speed.remaining_s) tiles.push(tile('left', duration(speed.remaining_s)));
  $('tiles').append(...tiles);
}

const panel = (title, note, ...children) => el('div', { class: 'panel' },
  el('h2', {}, title, note ? el('span', { text: note }) : null), ...children);

// rows: [{label, value, text, click}], one bar each.
function bars(rows, most) {
  const top = most || Math.max(...rows.map((row) => row.value), 1e-9);
  return el('ul', { class: 'bars' }, ...rows.map((row) => el('li', {},
    el(row.click ? 'button' : 'div', { class: 'row', type: row.click ? 'button' : null, onclick: row.click },
      el('span', { class: 'name', text: row.label, title: row.label }),
      el('span', { class: 'track', '--part': row.value / top, '--rest': (row.rest || 0) / top }),
      el('span', { class: 'amount', text: row.text })))));
}

function scorePanel() {
  const { counts, median } = FACTS.scores, most = Math.max(...counts, 1);
  const chart = svg('svg', { viewBox: '0 0 200 62', class: 'histogram', role: 'img',
    'aria-label': 'How many images have which score', preserveAspectRatio: 'none' });
  counts.forEach((count, i) => {
    const height = count ? Math.max(1, (count / most) * 58) : 0;
    chart.append(svg('rect', { x: i * 10 + 0.6, width: 8.8, y: 60 - height, height },
      svg('title', { text: `${i * 5} to ${i * 5 + 5} %: ${number(count)}` })));
  });
  chart.append(svg('line', { x1: median * 200, x2: median * 200, y1: 0, y2: 60 }));
  return panel('Scores', `median ${percent(median)}`, chart,
    el('div', { class: 'axis' }, ...['0', '50 %', '100 %'].map((text) => el('span', { text }))));
}

function answerPanel(filter) {
  return panel('Most frequent answers', 'rows, mean score', bars(FACTS.answers.map((a) => ({
    label: className(a.target), value: a.count, text: `${number(a.count)} · ${percent(a.score)}`,
    click: () => filter({ klass: className(a.target) }) }))));
}

function failurePanel(filter) {
  const failed = Object.entries(FACTS.statuses).filter(([status]) => status !== 'ok');
  if (!failed.length) return null;
  return panel('Failures', null, bars(failed.map(([status, count]) => ({
    label: words(status), value: count, text: number(count), click: () => filter({ status }) }))));
}

function stagePanel() {
  const stages = Object.entries(FACTS.speed.stages);
  if (!stages.length) return null;
  const wall = FACTS.speed.wall_s;
  return panel('Stages', `busy / waiting, ${wall < 10 ? `${wall.toFixed(1)} s` : duration(wall)} in all`,
    bars(stages.map(([name, [busy, waiting]]) => ({ label: name, value: busy, rest: waiting,
      text: `${busy.toFixed(1)} / ${waiting.toFixed(1)} s` })),
    Math.max(...stages.map(([, [busy, waiting]]) => busy + waiting))));
}

function accuracyPanel() {
  if (!FACTS.accuracy || !FACTS.accuracy.rows) return null;
  const { rows, within } = FACTS.accuracy;
  return panel('Accuracy', `${number(rows)} rows with a true place`, bars(within.map(([km, count]) => ({
    label: `≤ ${number(km)} km`, value: count / rows, text: percent(count / rows) })), 1));
}

function madePanel() {
  return el('details', { class: 'panel made', open: innerWidth > 720 }, el('summary', { text: 'What was computed' }),
    el('dl', {}, ...FACTS.made.flatMap(([name, value]) => [el('dt', { text: name }), el('dd', { text: value })])));
}

function mapPanel(world) {
  const { all, points } = FACTS.places;
  const button = (text, label, onclick) =>
    el('button', { type: 'button', text, 'aria-label': label, title: label, onclick });
  const legend = [el('span', { class: 'key place', text: 'predicted, by number of images' })];
  if (world.truths.length) {
    legend.push(el('span', { class: 'key truth', text: 'true' }), el('span', { class: 'key way', text: 'error' }));
  }
  const note = `${number(all)} ${all === 1 ? 'place' : 'places'}` +
    (points.length < all ? `, the most frequent ${number(points.length)} drawn` : '');
  return el('div', { class: 'panel map' }, el('h2', {}, 'Places', el('span', { text: note })),
    el('div', { class: 'frame' }, world.svg, el('div', { class: 'zoom' },
      button('+', 'closer', () => world.zoom(0.6)), button('−', 'further', () => world.zoom(1.6)),
      button('⤢', 'all places', () => world.fit()))),
    el('div', { class: 'legend' }, ...legend));
}

// Beside the map what tells of answers, under it what tells of the run.
function drawOverview(world, filter) {
  const answers = [accuracyPanel(), FACTS.scores.median === null ? null : scorePanel(), FACTS.answers.length ? answerPanel(filter) : null, failurePanel(filter)];
  const ofRun = [stagePanel(), madePanel()];
  const column = (kind, panels) => el('div', { class: kind }, ...panels.filter(Boolean));
  $('overview').append(...(world
    ? [column('column', [mapPanel(world), column('beside', ofRun)]), column('column', answers)]
    : [...answers, ...ofRun].filter(Boolean)));
  $('overview').classList.toggle('with-map', Boolean(world));
}
