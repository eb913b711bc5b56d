'use strict';
// What the sections of report.js are made of: elements, numbers, tables, charts and heat maps, drawn from the JSON in #data. Texts of
// the run are set as text, never as markup.
const data = JSON.parse(document.getElementById('data').textContent);
const runs = data.runs;
const shown = runs.map(() => true);
const SVG = (() => {  // the namespace of SVG, without its address
  const holder = document.createElement('div');
  holder.innerHTML = '<svg></svg>';
  return holder.firstChild.namespaceURI;
})();
const $ = id => document.getElementById(id);
const color = i => `var(--c${i % 8})`;

function el(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.filter(c => c !== null && c !== undefined));
  return node;
}
function svg(name, attributes = {}, text) {
  const node = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  return node;
}
const swatch = i => el('i', {class: 'swatch', style: `background:${color(i)}`});

// Numbers.
function short(v) {
  if (v === null || v === undefined || !isFinite(v)) return '–';
  const a = Math.abs(v);
  if (a === 0) return '0';
  for (const [size, letter] of [[1e15, 'P'], [1e12, 'T'], [1e9, 'G'], [1e6, 'M'], [1e4, 'k']])
    if (a >= size) return +(v / (letter === 'k' ? 1e3 : size)).toPrecision(4) + letter;
  if (a < 1e-3) return v.toExponential(2).replace(/\.?0+e/, 'e');
  return String(+v.toPrecision(4));
}
const whole = v => v === undefined || v === null ? '–' : Math.round(v).toLocaleString('en-US');
const percent = v => v === undefined || v === null ? '–' : (100 * v).toFixed(1) + ' %';
function duration(s) {
  if (!(s > 0)) return '0 s';
  if (s < 0.01) return 'below 0.01 s';
  if (s < 60) return +s.toPrecision(3) + ' s';
  const m = Math.floor(s / 60), h = Math.floor(m / 60), d = Math.floor(h / 24);
  if (m < 60) return `${m} min ${Math.floor(s % 60)} s`;
  return h < 48 ? `${h} h ${m % 60} min` : `${d} d ${h % 24} h`;
}
const date = seconds => new Date(seconds * 1000).toISOString().slice(0, 19).replace('T', ' ') + ' UTC';

// Tables: a cell is a text, a node, or {text, class}.
function table(head, rows, total) {
  const cell = (c, kind) => {
    const plain = typeof c !== 'object' || c === null || c instanceof Node;
    const node = el(kind, plain ? {} : {class: c.class});
    node.append(plain ? c : c.text);
    return node;
  };
  const body = el('tbody');
  rows.forEach((row, i) => {
    const tr = el('tr', i === total ? {class: 'total'} : {});
    row.forEach((c, k) => tr.append(cell(c, k === 0 ? 'th' : 'td')));
    body.append(tr);
  });
  const parts = [body];
  if (head) parts.unshift(el('thead', {}, el('tr', {}, ...head.map(h => cell(h, 'th')))));
  return el('div', {class: 'scroll'}, el('table', {}, ...parts));
}
const number = text => ({text, class: 'number'});
function heading(i) {
  const h = el('h3');
  if (runs.length > 1) h.append(swatch(i), ' ');
  h.append(runs[i].label);
  return h;
}

// The box beside the pointer.
const tip = $('tip');
function show(event, lines) {
  tip.replaceChildren(...lines.map(l => el('div', {}, ...(Array.isArray(l) ? l : [l]))));
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  let x = event.clientX + 14, y = event.clientY + 14;
  if (x + box.width > innerWidth - 8) x = Math.max(8, event.clientX - box.width - 14);
  if (y + box.height > innerHeight - 8) y = Math.max(8, event.clientY - box.height - 14);
  tip.style.left = x + 'px';
  tip.style.top = y + 'px';
}
const hide = () => { tip.hidden = true; };
addEventListener('scroll', hide, {passive: true});

// Every figure draws itself for a width, and again when the width or the shown runs change.
const figures = [];
function figure(node, draw) {
  const entry = {node, draw, width: 0};
  figures.push(entry);
  return node;
}
function redraw(all) {
  for (const f of figures) {
    const width = f.node.clientWidth;
    if (width > 0 && (all || width !== f.width)) {
      f.width = width;
      f.draw(width);
    }
  }
}

// Ticks.
function linearTicks(low, high, count) {
  const raw = (high - low) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= raw * 0.999) || raw;
  const ticks = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9 && ticks.length < 20; k++) ticks.push(+(k * step).toPrecision(12));
  return ticks;
}
function logTicks(low, high) {
  const ticks = [];
  const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
  const stride = Math.max(1, Math.ceil((last - first) / 5));
  for (let p = first; p <= last; p += stride)
    for (const m of last - first <= 2 ? [1, 2, 5] : [1]) if (m * 10 ** p >= low * 0.999 && m * 10 ** p <= high * 1.001) ticks.push(m * 10 ** p);
  return ticks.length > 1 ? ticks : [low, high];
}

// The buckets of a series in groups of about `wide` pixels: the mean of each for the line, lowest and highest for the band.
function grouped(s, X, wide) {
  const groups = [];
  let group = null;
  for (let i = 0; i < s.to.length; i++) {
    if (s.mean[i] === null) { groups.push(null); group = null; continue; }
    const place = s.from ? (s.from[i] + s.to[i]) / 2 : s.to[i], x = X(place);
    if (group === null || x - group.begin > wide) {
      group = {begin: x, x: 0, sum: 0, n: 0, low: Infinity, high: -Infinity};
      groups.push(group);
    }
    group.x += x;
    group.sum += s.mean[i];
    group.n++;
    group.low = Math.min(group.low, s.low ? s.low[i] : s.mean[i]);
    group.high = Math.max(group.high, s.high ? s.high[i] : s.mean[i]);
  }
  return groups;
}

// A chart of series {run, name, color, to[], mean[], from?[], low?[], high?[], dots?}.
function chart(title, unit, series, options = {}) {
  const panel = el('div', {class: 'panel'});
  const head = el('div', {class: 'head'}, el('h3', {}, title), el('span', {class: 'quiet'}, unit));
  let log = false;
  const positive = series.every(s => (s.low || s.mean).every(v => v === null || v > 0));
  if (positive && options.log !== false) {
    const button = el('button', {class: 'switch', type: 'button', 'aria-pressed': 'false', title: 'Logarithmic scale'}, 'log');
    button.onclick = () => {
      log = !log;
      button.setAttribute('aria-pressed', String(log));
      draw(plot.clientWidth);
    };
    head.append(button);
  }
  const plot = el('div', {class: 'plot'});
  panel.append(head);
  if (options.legend) panel.append(el('div', {class: 'legend'}, ...series.map(s => el('span', {}, el('i', {class: 'swatch', style: `background:${s.color}`}), s.name))));
  panel.append(plot);
  const height = 190, left = 52, right = 10, top = 8, bottom = 22;
  function draw(width) {
    const visible = series.filter(s => shown[s.run] && s.to.length);
    const root = svg('svg', {viewBox: `0 0 ${width} ${height}`, height, role: 'img', 'aria-label': `${title} by step`});
    plot.replaceChildren(root);
    plot.onpointermove = plot.onpointerleave = plot.onpointerdown = null;
    if (!visible.length) {
      root.append(svg('text', {x: width / 2, y: height / 2, 'text-anchor': 'middle'}, 'no data'));
      return;
    }
    let x0 = Infinity, x1 = -Infinity, y0 = Infinity, y1 = -Infinity;
    for (const s of visible) {
      x0 = Math.min(x0, (s.from || s.to)[0]);
      x1 = Math.max(x1, s.to[s.to.length - 1]);
      for (const v of s.low || s.mean) if (v !== null && v < y0) y0 = v;
      for (const v of s.high || s.mean) if (v !== null && v > y1) y1 = v;
    }
    if (x0 === x1) { x0 -= 0.5; x1 += 0.5; }
    if (y0 === y1) { const d = Math.abs(y0) * 0.1 || 1; y0 -= log ? y0 / 2 : d; y1 += d; }
    if (!log) {
      if (y0 > 0 && y0 < 0.35 * y1) y0 = 0;
      const room = 0.05 * (y1 - y0);
      y1 += room;
      if (y0 !== 0) y0 -= room;
    }
    const scale = log ? Math.log10 : v => v;
    const X = s => left + (s - x0) / (x1 - x0) * (width - left - right);
    const Y = v => height - bottom - (scale(v) - scale(y0)) / (scale(y1) - scale(y0)) * (height - top - bottom);
    for (const t of log ? logTicks(y0, y1) : linearTicks(y0, y1, 4)) {
      root.append(svg('line', {class: 'gridline', x1: left, x2: width - right, y1: Y(t), y2: Y(t)}));
      root.append(svg('text', {x: left - 6, y: Y(t) + 4, 'text-anchor': 'end'}, short(t)));
    }
    root.append(svg('line', {class: 'baseline', x1: left, x2: width - right, y1: height - bottom, y2: height - bottom}));
    const ticks = linearTicks(x0, x1, Math.max(2, Math.floor(width / 110))).filter(t => t === Math.round(t));
    ticks.forEach((t, i) => root.append(svg('text', {x: X(t), y: height - 6, 'text-anchor': i === ticks.length - 1 && X(t) > width - 30 ? 'end' : 'middle'}, short(t))));
    if (options.marks && shown.filter(Boolean).length === 1) {
      const run = runs[shown.indexOf(true)];
      if (run.launches.length <= 60)
        for (const l of run.launches.slice(1)) if (l.from > x0 && l.from < x1) root.append(svg('line', {class: 'restart', x1: X(l.from), x2: X(l.from), y1: top, y2: height - bottom}));
      for (const [step] of run.marks || []) root.append(svg('line', {class: 'mark', x1: X(step), x2: X(step), y1: height - bottom, y2: height - bottom + 6}));
    }
    const at = (s, i) => s.from ? (s.from[i] + s.to[i]) / 2 : s.to[i];
    const drawn = visible.map(s => [s, grouped(s, X, s.dots ? 0 : 3)]);
    for (const [s, groups] of drawn) {
      const known = groups.filter(Boolean), point = (g, v) => (g.x / g.n).toFixed(1) + ' ' + Y(v).toFixed(1);
      if (known.every(g => g.low === g.high)) continue;
      const path = known.map(g => point(g, g.high)).concat(known.reverse().map(g => point(g, g.low)));
      root.append(svg('path', {class: 'band', d: 'M' + path.join('L') + 'Z', style: `fill:${s.color}`}));
    }
    for (const [s, groups] of drawn) {
      let path = '', pen = 'M';
      for (const g of groups) {
        if (g === null) { pen = 'M'; continue; }
        path += pen + (g.x / g.n).toFixed(1) + ' ' + Y(g.sum / g.n).toFixed(1);
        pen = 'L';
      }
      root.append(svg('path', {class: 'curve', d: path, style: `stroke:${s.color}`}));
      if (s.dots && s.to.length <= 60 || s.to.length === 1)
        for (let i = 0; i < s.to.length; i++) if (s.mean[i] !== null) root.append(svg('circle', {cx: X(s.to[i]), cy: Y(s.mean[i]), r: 3, style: `fill:${s.color}`}));
    }
    const cross = svg('line', {class: 'cross', y1: top, y2: height - bottom, visibility: 'hidden'});
    root.append(cross);
    plot.onpointerdown = plot.onpointermove = event => {
      const box = plot.getBoundingClientRect();
      const step = x0 + (Math.min(Math.max(event.clientX - box.left, left), width - right) - left) / (width - left - right) * (x1 - x0);
      const lines = [];
      let place = null;
      for (const s of visible) {
        let i = 0, j = s.to.length - 1;  // the bucket that has the step, or the nearest one
        while (i < j) {
          const middle = (i + j) >> 1;
          if (s.to[middle] < step) i = middle + 1; else j = middle;
        }
        if (i > 0 && !s.from && step - s.to[i - 1] < s.to[i] - step) i--;
        if (place === null) {
          place = at(s, i);
          lines.push(s.from && s.from[i] !== s.to[i] ? `steps ${whole(s.from[i])} to ${whole(s.to[i])}` : `step ${whole(s.to[i])}`);
        }
        const range = s.low && s.low[i] !== s.high[i] ? ` (${short(s.low[i])} to ${short(s.high[i])})` : '';
        lines.push([el('i', {class: 'swatch', style: `background:${s.color}`}), `${visible.length > 1 ? s.name + ' ' : ''}${short(s.mean[i])}${range}`]);
      }
      cross.setAttribute('visibility', 'visible');
      cross.setAttribute('x1', X(place));
      cross.setAttribute('x2', X(place));
      show(event, lines);
    };
    plot.onpointerleave = () => { hide(); cross.setAttribute('visibility', 'hidden'); };
  }
  figure(plot, draw);
  return panel;
}

// The colour of a load, 1000: as all others. A quarter is quite low, four times quite high.
function heat(load) {
  const d = Math.max(-1, Math.min(1, load > 0 ? Math.log2(load / 1000) / 2 : -1));
  const part = Math.round(Math.abs(d) * 100);
  return `color-mix(in srgb, var(--${d < 0 ? 'low' : 'high'}) ${part}%, var(--even))`;
}
// rows: [{name, load[]}]; a null load is not known.
function heatmap(caption, rows, experts) {
  const plot = el('div');
  const cell = rows.length > 40 ? 9 : rows.length > 16 ? 14 : 20;
  figure(plot, width => {
    const longest = Math.max(...rows.map(r => r.name.length));
    const left = Math.min(Math.max(24, longest * 6.4 + 10), width * 0.35), top = 18;
    const w = (width - left) / experts, gap = w > 8 ? 2 : w > 4 ? 1 : 0;
    const height = top + rows.length * cell;
    const root = svg('svg', {viewBox: `0 0 ${width} ${height}`, height, role: 'img', 'aria-label': caption});
    const every = Math.ceil(22 / w);
    for (let e = 0; e < experts; e += every) root.append(svg('text', {x: left + (e + 0.5) * w, y: 12, 'text-anchor': 'middle'}, String(e)));
    const stride = Math.ceil(12 / cell), fits = Math.floor((left - 8) / 6.2);
    rows.forEach((row, r) => {
      const y = top + r * cell;
      const name = row.name.length > fits ? row.name.slice(0, fits - 1) + '…' : row.name;
      if (r % stride === 0) root.append(svg('text', {x: left - 6, y: y + cell / 2 + 4, 'text-anchor': 'end'}, name));
      for (let e = 0; e < experts; e++) {
        const rect = svg('rect', {x: left + e * w, y, width: Math.max(w - gap, 0.5), height: cell - (cell > 10 ? 2 : 1), rx: w > 8 ? 2 : 0,
          style: row.load ? `fill:${heat(row.load[e])}` : 'fill:none'});
        rect.dataset.row = r;
        rect.dataset.expert = e;
        root.append(rect);
      }
    });
    root.onpointermove = root.onpointerdown = event => {
      const {row, expert} = event.target.dataset;
      if (row === undefined || !rows[row].load) return hide();
      const load = rows[row].load[expert];
      show(event, [`${rows[row].prefix || ''}${rows[row].name}, expert ${expert}`,
        `${percent(load / 1000 / experts)} of the tokens, ${(load / 1000).toFixed(2)} times an even share`]);
    };
    root.onpointerleave = hide;
    plot.replaceChildren(root);
  });
  return plot;
}
function scaleOfHeat() {
  const stops = [250, 354, 500, 707, 1000, 1414, 2000, 2828, 4000].map(heat).join(', ');
  return el('span', {class: 'scale'}, 'a quarter', el('i', {style: `background:linear-gradient(90deg, ${stops})`}), 'four times an even share');
}
// Bars of the share of each expert, one colour for each dataset: the paper's figure of routing.
function bars(rows, experts) {
  const plot = el('div');
  figure(plot, width => {
    const left = 40, top = 8, bottom = 22, height = 210;
    const most = Math.max(...rows.flatMap(r => r.load || [0]), 1200) / 1000 / experts;
    const Y = v => height - bottom - v / (most * 1.05) * (height - top - bottom);
    const root = svg('svg', {viewBox: `0 0 ${width} ${height}`, height, role: 'img', 'aria-label': 'Share of the tokens of each dataset by expert'});
    for (const t of linearTicks(0, most, 4)) {
      root.append(svg('line', {class: 'gridline', x1: left, x2: width, y1: Y(t), y2: Y(t)}));
      root.append(svg('text', {x: left - 6, y: Y(t) + 4, 'text-anchor': 'end'}, +(100 * t).toPrecision(3) + ' %'));
    }
    const group = (width - left) / experts, w = Math.min(group * 0.8 / rows.length, 26);
    for (let e = 0; e < experts; e++) {
      const begin = left + (e + 0.5) * group - w * rows.length / 2;
      root.append(svg('text', {x: left + (e + 0.5) * group, y: height - 6, 'text-anchor': 'middle'}, String(e)));
      rows.forEach((row, r) => {
        if (!row.load) return;
        const share = row.load[e] / 1000 / experts;
        const rect = svg('rect', {x: begin + r * w, y: Y(share), width: Math.max(w - (w > 5 ? 2 : 0.5), 0.5), height: Math.max(height - bottom - Y(share), 0), rx: w > 6 ? 2 : 0, style: `fill:${color(r)}`});
        rect.onpointermove = rect.onpointerdown = event => show(event, [[swatch(r), row.name], `expert ${e}: ${percent(share)} of its tokens`]);
        rect.onpointerleave = hide;
        root.append(rect);
      });
    }
    root.append(svg('line', {class: 'baseline', x1: left, x2: width, y1: height - bottom, y2: height - bottom}));
    root.append(svg('line', {class: 'cross', 'stroke-dasharray': '4 4', x1: left, x2: width, y1: Y(1 / experts), y2: Y(1 / experts)}));
    plot.replaceChildren(root);
  });
  return plot;
}
