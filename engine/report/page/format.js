// Text and elements. Whatever comes from users becomes text nodes and attributes, never markup.

const $ = (id) => document.getElementById(id);
const DATA = JSON.parse($('data').textContent);
const FACTS = DATA.facts;
const SVG = 'http://www.w3.org/2000/svg';

function set(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (name === 'text') node.textContent = value;
    else if (name.startsWith('--')) node.style.setProperty(name, value);
    else node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}
const el = (tag, attributes, ...children) =>
  set(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) =>
  set(document.createElementNS(SVG, tag), attributes, children);

const NUMBER = new Intl.NumberFormat('en');
const number = (value) => NUMBER.format(value);
const images = (count) => `${number(count)} ${count === 1 ? 'image' : 'images'}`;
function percent(p) {
  if (p === null || p === undefined) return '–';
  if (p > 0 && p < 0.001) return p.toExponential(1).replace('e-', '·10⁻').replace(/⁻(\d+)$/,
    (_, d) => '⁻' + [...d].map((c) => '⁰¹²³⁴⁵⁶⁷⁸⁹'[c]).join(''));
  return (100 * p).toFixed(1) + '\u00a0%';
}
function short(value) {
  if (value === null || value === undefined) return '–';
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2);
  return String(Number(value.toPrecision(4)));
}
function kilometres(value) {
  if (value === null || value === undefined) return '–';
  return (value < 10 ? value.toFixed(1) : number(Math.round(value))) + '\u00a0km';
}
function position(lat, lon) {
  const side = (value, plus, minus) =>
    `${Math.abs(value).toFixed(2)}° ${value >= 0 ? plus : minus}`;
  return `${side(lat, 'N', 'S')}, ${side(lon, 'E', 'W')}`;
}
function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 90) return `${s} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${(s / 3600).toFixed(1)} h` : `${Math.round(s / 86400)} days`;
}
const words = (status) => status.replaceAll('_', ' ');
const className = (target) => FACTS.names[target] || (target < 0 ? 'a region' : `class ${target}`);
function answer(card) {
  if (card.class_name) return card.class_name;
  const best = card.places?.length ? card.places[0].class : card.targets?.[0];
  return best === undefined ? '' : className(best);
}
