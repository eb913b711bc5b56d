// The sections of the page, made of what charts.js has. One that has nothing to show goes.
function drop(id) { $(id).remove(); }

function summary() {
  const rows = [];
  const row = (name, value, always) => {
    const values = runs.map((r, i) => value(r, i));
    if (always || values.some(v => v !== null)) rows.push([name, ...values.map(v => number(v === null ? '–' : v))]);
  };
  const lowest = r => {
    const all = (r.evals || []).find(e => e.tag === '');
    if (!all) return null;
    let best = 0;
    all.loss.forEach((v, i) => { if (v !== null && v < all.loss[best]) best = i; });
    return `${short(all.loss[best])} at step ${whole(all.step[best])}`;
  };
  const last = r => r.evaluations.length ? r.evaluations[r.evaluations.length - 1] : null;
  for (const key of ['name', 'mode', 'base', 'experts', 'LoRA rank', 'global batch', 'sequence length', 'device']) row(key, r => key in r.recipe ? String(r.recipe[key]) : null);
  row('steps', r => whole(r.sums.last_step) + ('planned steps' in r.recipe ? ' of ' + whole(r.recipe['planned steps']) : ''), true);
  row('last loss', r => short(r.sums.last_loss), true);
  row('lowest eval loss', lowest);
  row('exact match', r => last(r) && last(r).total.rows ? `${percent(last(r).total.exact)} (${last(r).name})` : null);
  row('tokens', r => short(r.sums.tokens), true);
  row('learned tokens', r => short(r.sums.supervised), true);
  row('throughput, median', r => short(r.sums.tokens_per_second) + ' tokens/s', true);
  row('time', r => duration((r.phases || []).reduce((sum, p) => sum + p[1], 0)), true);
  row('launches', r => whole(r.launches_in_all), true);
  row('steps computed again', r => r.sums.recomputed ? whole(r.sums.recomputed) : null);
  row('checkpoints written', r => whole(r.sums.saves), true);
  row('spikes, lost batches and saves', r => r.sums.marks ? whole(r.sums.marks) : null);
  if (runs.length > 1) {
    const head = ['', ...runs.map((r, i) => ({text: el('span', {}, swatch(i), r.label), class: 'number'}))];
    $('summary').append(el('div', {class: 'panel'}, table(head, rows)));
  } else {
    $('summary').append(el('dl', {class: 'panel facts'}, ...rows.map(([name, value]) => el('div', {}, el('dt', {}, name), el('dd', {}, value.text)))));
  }
  runs.forEach(r => r.notes.forEach(n => $('summary').append(el('p', {class: 'note'}, runs.length > 1 ? `${r.label}: ${n}` : n))));
}

function curves() {
  const grid = el('div', {class: 'grid'});
  const of = key => runs.map((r, i) => ({...(r.curves || {})[key], run: i, name: r.label, color: color(i)})).filter(s => s.to);
  const add = (key, title, unit, options) => {
    const series = of(key);
    if (series.length) grid.append(chart(title, unit, series, options));
  };
  const [loss, ...others] = data.curves;
  add(loss.key, loss.title, loss.unit, {marks: true});
  const single = runs.length === 1;
  const evals = runs.flatMap((r, i) => (r.evals || []).filter((e, k) => single ? k < 8 : e.tag === '')
    .map((e, k) => ({run: i, name: single ? e.tag || 'all' : r.label, color: color(single ? k : i), to: e.step, mean: e.loss, dots: true})));
  if (evals.length) grid.append(chart('Eval loss', 'nats per token', evals, {legend: single && evals.length > 1}));
  for (const c of others) add(c.key, c.title, c.unit, {marks: c.key === 'grad_norm'});
  if (!grid.children.length) return drop('curves');
  const banded = runs.some(r => Object.values(r.curves || {}).some(c => c.low));
  $('curves').append(el('p', {class: 'note'}, (banded ? 'A line is the mean of a few steps; the band around it goes from their lowest to their highest value. ' : '') +
    (single ? 'Dashed: a launch that went on from there. Red: a loss spike, a value that is not finite, or a save that failed.' : 'A run is shown or hidden by its name above.')), grid);
}

function experts() {
  const with_experts = runs.map((r, i) => [r, i]).filter(([r]) => r.experts && r.experts.slices);
  if (!with_experts.length) return drop('experts');
  const section = $('experts');
  const imbalance = runs.map((r, i) => ({...(r.curves || {}).imbalance, run: i, name: r.label, color: color(i)})).filter(s => s.to);
  section.append(el('p', {class: 'note'}, 'The share of tokens that each expert gets; with an even load all have the same.'));
  const slider = el('input', {type: 'range', min: 0, max: 1000, value: 1000, 'aria-label': 'Time in the run'});
  const label = el('span');
  const control = el('div', {class: 'slider'}, el('span', {}, 'Steps'), slider, label, scaleOfHeat());
  const layers = el('div', {class: 'wide'}), tags = el('div', {class: 'wide more'});
  section.append(control, layers, tags, el('div', {class: 'wide more'}, chart('Busiest expert', 'of any layer; 1: an even share', imbalance)));
  const first = figures.length;
  function draw() {
    figures.length = first;
    layers.replaceChildren();
    tags.replaceChildren();
    for (const [r, i] of with_experts) {
      const {slices, experts} = r.experts;
      const slice = slices[Math.round(slider.value / 1000 * (slices.length - 1))];
      if (r === with_experts[0][0]) label.textContent = `${whole(slice.first)} to ${whole(slice.last)}`;
      const steps = with_experts.length > 1 ? ` (steps ${whole(slice.first)} to ${whole(slice.last)})` : '';
      const rows = [];
      for (let l = 0; l < r.experts.layers; l++) rows.push({name: String(l), prefix: 'layer ', load: slice.load.slice(l * experts, (l + 1) * experts)});
      layers.append(el('div', {class: 'panel'}, runs.length > 1 ? heading(i) : null, el('p', {class: 'note'}, 'By layer (down) and expert (across)' + steps), heatmap('Expert load by layer', rows, experts)));
      if (!r.experts.tags) continue;
      const of_tags = r.experts.tags.map((t, k) => ({name: t.tag, load: slice.tags[k]}));
      const few = of_tags.length <= 8 && experts <= 16;
      const panel = el('div', {class: 'panel'}, runs.length > 1 ? heading(i) : null, el('p', {class: 'note'}, 'By dataset, over all layers' + (few ? '; dashed: an even share' : '') + steps));
      if (few) panel.append(el('div', {class: 'legend'}, ...of_tags.map((t, k) => el('span', {}, swatch(k), t.name))));
      panel.append(few ? bars(of_tags, experts) : heatmap('Expert load by dataset', of_tags, experts));
      tags.append(panel);
    }
    redraw(false);
  }
  slider.oninput = () => { hide(); draw(); };
  draw();
}

function evaluation() {
  const section = $('evaluation');
  const wide = el('div', {class: 'wide'});
  runs.forEach((r, i) => {
    if (!r.evaluations.length) return;
    const tags = [...new Set(r.evaluations.flatMap(e => Object.keys(e.datasets || {})))].sort();
    const cells = scores => r.evaluations.flatMap(e => {
      const s = scores(e);
      return [number(s ? short(s.loss) : '–'), number(s && s.rows ? percent(s.exact) : '–')];
    });
    const head = ['dataset', ...r.evaluations.flatMap(e => [number(`${e.name}: loss`), number('exact match')])];
    const rows = tags.map(t => [t, ...cells(e => (e.datasets || {})[t])]);
    rows.push(['all', ...cells(e => e.total)]);
    wide.append(el('div', {class: 'panel'}, runs.length > 1 ? heading(i) : null, table(head, rows, tags.length ? rows.length - 1 : undefined)));
  });
  if (!wide.children.length) return drop('evaluation');
  section.append(el('p', {class: 'note'}, 'As pesc eval found it: the mean loss of a learned token in nats, and the share of answers that are exactly the expected ones.'), wide);
  const routed = [];
  runs.forEach((r, i) => {
    const e = r.evaluations[r.evaluations.length - 1];
    const rows = Object.entries(e && e.datasets || {}).filter(([, s]) => s.load).map(([tag, s]) => ({name: tag, load: s.load}));
    if (!rows.length) return;
    routed.push(el('div', {class: 'panel'}, runs.length > 1 ? heading(i) : null, el('p', {class: 'note'}, `Experts of the evaluated rows by dataset, ${e.name}, over all layers`),
      heatmap('Expert load of the evaluation', rows, rows[0].load.length)));
  });
  if (routed.length) section.append(el('div', {class: 'wide more'}, ...routed));
}

function answers() {
  const section = $('answers');
  let any = false;
  runs.forEach((r, i) => {
    if (!r.answers.length) return;
    any = true;
    const list = el('div', {class: 'answers'});
    const cards = r.answers.map(a => {
      const part = (name, text, judged) => {
        if (text === undefined) return [];
        const right = text.trim() === a.expected.trim();
        const h = el('h4', {}, name);
        if (judged) h.append(' ', el('span', {class: right ? 'right' : 'wrong'}, right ? '✓ exact' : '✗ not exact'));
        return [h, el('pre', {}, text || ' ')];
      };
      return el('div', {class: 'panel answer'}, el('h3', {}, a.dataset), ...part('question', a.question), ...part('expected', a.expected),
        ...(a.before ? part(a.before.name, a.before.text, true) : []), ...part(a.after.name, a.after.text, true));
    });
    list.append(...cards.slice(0, 6));
    if (runs.length > 1) section.append(heading(i));
    section.append(list);
    if (cards.length > 6) {
      const rest = el('div', {class: 'answers', style: 'margin-top:10px'}, ...cards.slice(6));
      section.append(el('details', {}, el('summary', {}, `${cards.length - 6} more`), rest));
    }
  });
  if (!any) drop('answers');
}

function time() {
  const wide = el('div', {class: 'wide'});
  runs.forEach((r, i) => {
    const phases = r.phases || [], sum = phases.reduce((s, p) => s + p[1], 0);
    if (!(sum > 0)) return;
    const bar = el('div', {class: 'bar'}, ...phases.map((p, k) => el('i', {style: `background:${color(k)};flex:${p[1] / sum}`, title: p[0]})));
    const rows = phases.map((p, k) => [el('span', {}, swatch(k), p[0]), number(duration(p[1])), number(percent(p[1] / sum))]);
    rows.push(['in all', number(duration(sum)), number('')]);
    wide.append(el('div', {class: 'panel'}, runs.length > 1 ? heading(i) : null, bar, table(null, rows, rows.length - 1)));
  });
  if (!wide.children.length) return drop('time');
  $('time').append(el('p', {class: 'note'}, 'Where the time of the run went.'), wide);
}

function launches() {
  const section = $('launches');
  const wide = el('div', {class: 'grid', style: 'grid-template-columns:1fr'});
  runs.forEach((r, i) => {
    if (!r.launches.length) return;
    const rows = r.launches.map(l => [String(l.launch), l.began ? date(l.began) : '–', number(whole(l.ranks)), number(whole(l.from)), number(whole(l.to)),
      l.seconds === undefined ? '–' : duration(l.seconds), {text: l.status === undefined ? '–' : [l.status, l.exit ? `exit code ${l.exit}` : '', l.error].filter(Boolean).join('; '), class: 'text'}]);
    const left_out = r.launches_in_all - r.launches.length;
    wide.append(el('div', {class: 'panel'}, runs.length > 1 ? heading(i) : null, left_out ? el('p', {class: 'note'}, `${left_out} earlier ones are left out`) : null,
      table(['launch', 'began', number('ranks'), number('from step'), number('to step'), 'took', 'how it ended'], rows)));
  });
  if (!wide.children.length) return drop('launches');
  section.append(el('p', {class: 'note'}, 'A launch goes on from the newest checkpoint. How it ended is known where pesc launch had started it.'), wide);
}

function configuration() {
  const section = $('configuration');
  let any = false;
  runs.forEach((r, i) => {
    if (!r.config) return;
    any = true;
    if (r.differences) {
      section.append(el('p', {}, heading(i)), r.differences.length ? el('pre', {class: 'config'}, r.differences.join('\n')) : el('p', {class: 'note'}, `No field differs from ${runs[0].label}.`));
    }
  });
  if (!any) return drop('configuration');
  runs.forEach(r => { if (r.config) section.append(el('details', {}, el('summary', {}, `${r.label}: all fields`), el('pre', {class: 'config'}, r.config))); });
}

const title = runs.map(r => r.recipe.name && r.recipe.name !== r.label ? `${r.recipe.name} (${r.label})` : r.label).join(', ');
document.title = title + ' – pesc report';
$('title').textContent = runs.length > 3 ? `${runs.length} runs` : title;
$('made').textContent = `pesc report, ${date(data.made)}`;
if (runs.length > 1) runs.forEach((r, i) => {
  const chip = el('button', {class: 'chip', type: 'button', 'aria-pressed': 'true'}, swatch(i), r.label);
  chip.onclick = () => {
    shown[i] = !shown[i];
    chip.setAttribute('aria-pressed', String(shown[i]));
    redraw(true);
  };
  $('runs').append(chip);
});
summary();
curves();
evaluation();
answers();
time();
launches();
configuration();
experts();  // last: the slider replaces its figures, which stand at the end of the list
for (const section of document.querySelectorAll('section')) {
  const h = section.querySelector('h2');
  $('contents').append(el('a', {href: '#' + section.id}, h.textContent));
}
redraw(true);
let waiting = 0;
addEventListener('resize', () => {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(() => { hide(); redraw(false); });
});
