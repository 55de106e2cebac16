// The map of the world: Equal Earth (Savric, Patterson, Jenny 2018), so that areas compare.

const UNIT = 1000 / 5.4133; // the equator is 1000 wide
const FLAT = 0.487; // height of the view by its width: that of the whole world

function project(lon, lat) {
  const t = Math.asin((Math.sqrt(3) / 2) * Math.sin((lat * Math.PI) / 180));
  const t2 = t * t, t6 = t2 * t2 * t2;
  const A = [1.340264, -0.081106, 0.000893, 0.003796];
  const slope = A[0] + 3 * A[1] * t2 + t6 * (7 * A[2] + 9 * A[3] * t2);
  const x = (2 * Math.sqrt(3) * ((lon * Math.PI) / 180) * Math.cos(t)) / (3 * slope);
  const y = t * (A[0] + A[1] * t2 + t6 * (A[2] + A[3] * t2));
  return [500 + x * UNIT, 243.35 - y * UNIT];
}

const pathOf = (points, close) => points.map(([lon, lat], i) => {
  const [x, y] = project(lon, lat);
  return `${i ? 'L' : 'M'}${x.toFixed(2)} ${y.toFixed(2)}`;
}).join('') + (close ? 'Z' : '');

// Tenths of degrees, the first position and then differences.
function undelta(flat) {
  const points = [];
  for (let i = 0, x = 0, y = 0; i < flat.length; i += 2) {
    points.push([(x += flat[i]) / 10, (y += flat[i + 1]) / 10]);
  }
  return points;
}

function range(from, to, step) {
  const values = [];
  for (let v = from; v <= to; v += step) values.push(v);
  return values;
}

function background() {
  const outlines = JSON.parse($('world').textContent);
  const lines = range(-150, 150, 30).map((lon) => range(-90, 90, 5).map((lat) => [lon, lat]))
    .concat(range(-60, 60, 30).map((lat) => range(-180, 180, 5).map((lon) => [lon, lat])));
  const edge = range(-90, 90, 3).map((lat) => [-180, lat])
    .concat(range(-90, 90, 3).map((lat) => [180, -lat]));
  return [
    svg('path', { class: 'sea', d: pathOf(edge, true) }),
    svg('path', { class: 'graticule', d: lines.map((l) => pathOf(l)).join('') }),
    svg('path', { class: 'land', d: outlines.land.map((r) => pathOf(undelta(r), true)).join('') }),
    svg('path', { class: 'borders', d: outlines.borders.map((l) => pathOf(undelta(l))).join('') }),
  ];
}

// The shortest way between two places, in pieces that do not cross the date line.
function greatCircle(lat0, lon0, lat1, lon1) {
  const unit = (lat, lon) => {
    const a = (lat * Math.PI) / 180, b = (lon * Math.PI) / 180;
    return [Math.cos(a) * Math.cos(b), Math.cos(a) * Math.sin(b), Math.sin(a)];
  };
  const p = unit(lat0, lon0), q = unit(lat1, lon1);
  const angle = Math.acos(Math.min(1, Math.max(-1, p[0] * q[0] + p[1] * q[1] + p[2] * q[2])));
  const count = Math.max(1, Math.ceil(angle / 0.05)), pieces = [[]];
  let before = null;
  for (let i = 0; i <= count; i++) {
    const t = i / count, s = Math.sin(angle) || 1;
    const [a, b] = angle < 1e-6 ? [1 - t, t]
      : [Math.sin((1 - t) * angle) / s, Math.sin(t * angle) / s];
    const [x, y, z] = p.map((v, j) => a * v + b * q[j]);
    const lon = (Math.atan2(y, x) * 180) / Math.PI;
    if (before !== null && Math.abs(lon - before) > 180) pieces.push([]);
    pieces.at(-1).push([lon, (Math.atan2(z, Math.hypot(x, y)) * 180) / Math.PI]);
    before = lon;
  }
  return pieces.filter((piece) => piece.length > 1).map((piece) => pathOf(piece)).join('');
}

const placeKey = (lat, lon) => `${lat} ${lon}`;

class World {
  // select(place): called with the index of a place whose pictures are wanted.
  constructor(places, cards, select) {
    this.places = places;
    const at = new Map(places.map(([lat, lon], i) => [placeKey(lat, lon), i]));
    this.cards = places.map(() => []);
    for (const card of cards) {
      if (card.lat === undefined) continue;
      card.place = at.get(placeKey(card.lat, card.lon));
      if (card.place !== undefined) this.cards[card.place].push(card);
    }
    this.truths = cards.filter((c) => c.lat !== undefined && c.true_lat !== undefined);
    this.dots = [];
    const lines = svg('g', { class: 'lines' }), dots = svg('g'), truths = svg('g', { class: 'truths' });
    for (const card of this.truths) this.addTruth(card, lines, truths);
    const most = Math.max(1, ...places.map((p) => p[2]));
    places.forEach((place, i) => dots.append(this.dot(place, i, most, select)));
    this.svg = svg('svg', { class: 'world', role: 'img', 'aria-label': 'Map of predicted places' },
      ...background(), lines, dots, truths);
    this.fit();
    this.svg.addEventListener('pointerdown', (event) => this.drag(event));
    this.svg.addEventListener('wheel', (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      this.zoom(event.deltaY > 0 ? 1.25 : 0.8);
    }, { passive: false });
    new ResizeObserver(() => this.scale()).observe(this.svg);
  }

  addTruth(card, lines, dots) {
    lines.append(svg('path', {
      d: greatCircle(card.lat, card.lon, card.true_lat, card.true_lon) }));
    const [cx, cy] = project(card.true_lon, card.true_lat);
    const circle = svg('circle', { cx, cy, class: 'truth' });
    dots.append(circle);
    this.dots.push([circle, 2.5]);
  }

  dot([lat, lon, rows, name], index, most, select) {
    const [cx, cy] = project(lon, lat), shown = this.cards[index].length;
    const circle = svg('circle', { cx, cy, class: shown ? 'place' : 'place bare' });
    this.dots.push([circle, 3 + 8 * Math.sqrt(rows / most)]);
    const label = `${name || position(lat, lon)}: ${images(rows)}`;
    const over = () => showTip(circle, label, this.cards[index]);
    const attributes = { 'aria-label': label, onpointerenter: over, onpointerleave: hideTip };
    if (!shown) return svg('g', attributes, circle);
    return svg('a', { ...attributes, href: `#place=${index}`, onfocus: over, onblur: hideTip,
      onclick: (event) => { event.preventDefault(); hideTip(); select(index); } }, circle);
  }

  // All places, with some room around them; never closer than a tenth of the world.
  fit() {
    const points = this.places.map(([lat, lon]) => project(lon, lat))
      .concat(this.truths.map((c) => project(c.true_lon, c.true_lat)));
    const xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
    let [x0, x1, y0, y1] = [Math.min(...xs) - 40, Math.max(...xs) + 40,
      Math.min(...ys) - 40, Math.max(...ys) + 40];
    if (!points.length || x1 - x0 > 450 || y1 - y0 > 240) [x0, x1, y0, y1] = [0, 1000, 0, 1000 * FLAT];
    const width = Math.max(x1 - x0, 100, (y1 - y0) / FLAT);
    this.whole = width;
    this.view = { x: (x0 + x1 - width) / 2, y: (y0 + y1 - width * FLAT) / 2, w: width };
    this.scale();
  }

  zoom(factor) {
    const w = Math.min(1000, Math.max(8, this.view.w * factor));
    const grown = w - this.view.w;
    this.view = { x: this.view.x - grown / 2, y: this.view.y - (grown * FLAT) / 2, w };
    this.scale();
  }

  drag(down) {
    if (down.pointerType === 'touch' && this.view.w >= this.whole) return; // a finger scrolls the page
    const unit = this.view.w / this.svg.clientWidth, { x, y } = this.view;
    const move = (event) => {
      this.view.x = x - (event.clientX - down.clientX) * unit;
      this.view.y = y - (event.clientY - down.clientY) * unit;
      this.scale();
    };
    const up = () => { for (const [name, heard] of [['pointermove', move], ['pointerup', up], ['pointercancel', up]]) removeEventListener(name, heard); };
    addEventListener('pointermove', move);
    addEventListener('pointerup', up);
    addEventListener('pointercancel', up);
  }

  // Dots keep their size on the screen.
  scale() {
    const { x, y, w } = this.view, width = this.svg.clientWidth || 800;
    const unit = (w / width) * Math.min(1, 0.4 + width / 1200);
    this.svg.setAttribute('viewBox', `${x} ${y} ${w} ${w * FLAT}`);
    this.svg.style.touchAction = w < this.whole ? 'none' : ''; // of a part, a finger moves the map
    for (const [circle, r] of this.dots) circle.setAttribute('r', r * unit);
  }
}

function showTip(circle, label, cards) {
  const pictures = cards.filter((c) => c.photo).slice(0, 4).map((c) => el('img', { src: c.photo, alt: '' }));
  const tip = $('tip'), box = circle.getBoundingClientRect();
  tip.replaceChildren(el('div', { text: label }), ...(pictures.length ? [el('div', {}, ...pictures)] : []));
  tip.hidden = false;
  const left = Math.min(innerWidth - tip.offsetWidth - 8, Math.max(8, box.left - tip.offsetWidth / 2));
  const above = box.top - tip.offsetHeight - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above > 4 ? above : box.bottom + 8}px`;
}
const hideTip = () => { $('tip').hidden = true; };
