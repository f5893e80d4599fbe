// What events tell: requests a second, what is in flight, and keys refused most.

const SECONDS = 120;

// By limiter and sort of limit: the counts of the last two minutes, the newest last.
const series = new Map();
let newest = -1;

function seriesOf({ name, limit_type }) {
  const id = JSON.stringify([name, limit_type]);
  if (!series.has(id)) {
    const none = () => new Array(SECONDS).fill(0);
    series.set(id, {
      name: name || '(no name)', type: limit_type, colour: series.size % 8,
      admitted: none(), refused: none(), would_refuse: none(),
    });
  }
  return series.get(id);
}

const SORTS = ['admitted', 'refused', 'would_refuse'];

function takeHistory({ second, limiters }) {
  state('live', 'Live');
  series.clear();
  newest = second;
  for (const limiter of limiters) {
    const counts = seriesOf(limiter);
    for (const sort of SORTS) {
      counts[sort] = new Array(SECONDS).fill(0).concat(limiter[sort]).slice(-SECONDS);
    }
  }
  showTraffic();
}

function takeSecond({ second, limiters, in_flight, refused_keys }) {
  state('live', 'Live');
  for (; newest < second; newest += 1) {
    for (const counts of series.values()) {
      for (const sort of SORTS) {
        counts[sort].push(0);
        counts[sort].shift();
      }
    }
  }
  for (const limiter of limiters) {
    const counts = seriesOf(limiter);
    for (const sort of SORTS) counts[sort][SECONDS - 1] = limiter[sort];
  }
  showTraffic();
  showInFlight(in_flight);
  showRefusedKeys(refused_keys);
}

// Requests a second.

const sum = (counts) => counts.reduce((total, count) => total + count, 0);

function showTraffic() {
  const rows = [];
  for (const counts of series.values()) {
    const number = (value, isBad) => make('td', isBad && value > 0 ? 'number some' : 'number', String(value));
    const last = (sort) => counts[sort][SECONDS - 1];
    const name = make('th', '', make('span', `swatch s${counts.colour}`), counts.name,
      make('span', 'type', counts.type));
    name.scope = 'row';
    rows.push(make('tr', '', name,
      number(last('admitted')), number(last('refused'), true),
      number(sum(counts.admitted)), number(sum(counts.refused), true), number(sum(counts.would_refuse))));
  }
  at('limiters').replaceChildren(...rows);
  at('no-limiters').hidden = rows.length > 0;
  plot('admitted');
  plot('refused');
}

// The next number that is good to read on an axis.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

function plot(sort) {
  const canvas = at(sort);
  const { clientWidth: width, clientHeight: height } = canvas;
  if (width === 0) return;
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext('2d');
  context.scale(scale, scale);
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();

  const peak = Math.max(0, ...[...series.values()].flatMap((counts) => counts[sort]));
  const top = roundUp(peak);
  const box = { left: 34, right: width - 6, top: 8, bottom: height - 18 };
  const x = (n) => box.left + (n / (SECONDS - 1)) * (box.right - box.left);
  const y = (count) => box.bottom - (count / top) * (box.bottom - box.top);

  context.font = '11px system-ui, sans-serif';
  context.lineWidth = 1;
  context.strokeStyle = colour('--line');
  context.fillStyle = colour('--quiet');
  context.textBaseline = 'middle';
  context.textAlign = 'right';
  for (const count of top > 1 ? [0, top / 2, top] : [0, top]) {
    const line = Math.round(y(count)) + 0.5;
    context.beginPath();
    context.moveTo(box.left, line);
    context.lineTo(box.right, line);
    context.stroke();
    context.fillText(count >= 10000 ? `${count / 1000}k` : String(count), box.left - 6, line);
  }
  context.textBaseline = 'alphabetic';
  context.textAlign = 'left';
  context.fillText('−2 min', box.left, height - 4);
  context.textAlign = 'center';
  context.fillText('−1 min', (box.left + box.right) / 2, height - 4);
  context.textAlign = 'right';
  context.fillText('now', box.right, height - 4);

  context.lineWidth = 1.75;
  context.lineJoin = 'round';
  for (const counts of series.values()) {
    context.strokeStyle = colour(`--s${counts.colour}`);
    context.beginPath();
    counts[sort].forEach((count, n) => (n ? context.lineTo(x(n), y(count)) : context.moveTo(x(n), y(count))));
    context.stroke();
  }
  canvas.dataset.peak = peak;
}

new ResizeObserver(() => {
  plot('admitted');
  plot('refused');
}).observe(at('admitted'));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', showTraffic);

// Bars.

function bar(name, type, used, limit) {
  const share = limit === null ? 0 : used >= limit ? 1 : used / limit;
  const level = share >= 0.9 ? 'red' : share >= 0.7 ? 'amber' : '';
  const fill = make('div', 'fill');
  fill.style.width = `${share * 100}%`;
  const track = make('div', 'track', fill);
  track.setAttribute('aria-hidden', 'true');
  return make('li', level, make('span', 'key', name, make('span', 'type', type)),
    make('span', 'of', limit === null ? String(used) : `${used} of ${limit}`), track);
}

function showInFlight(limiters) {
  const bars = limiters.map(({ name, used, limit }) => bar(name || '(no name)', '', used, limit));
  at('in-flight').replaceChildren(...bars);
  at('no-in-flight').hidden = bars.length > 0;
}

// Keys refused most. Rows are kept while their keys are the same, so that focus is.

let refusedKeys = '';

function showRefusedKeys(keys) {
  const body = at('refused-keys');
  const shown = JSON.stringify(keys.map(({ key }) => key));
  if (shown !== refusedKeys) {
    refusedKeys = shown;
    body.replaceChildren(...keys.map(({ key }) => make('tr', '', make('td', 'key', key), make('td', 'number'),
      make('td', 'actions', button('Usage', `Usage of ${key}`, () => showUsage(key))))));
  }
  keys.forEach(({ count }, n) => { body.rows[n].cells[1].textContent = count; });
  at('no-refused-keys').hidden = keys.length > 0;
}
