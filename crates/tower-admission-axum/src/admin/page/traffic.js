// Requests a second, of all replicas together.

const SECONDS = 120;
const SORTS = ['admitted', 'refused', 'would_refuse'];
const none = () => new Array(SECONDS).fill(0);

// Each line has a colour and a dash pattern of its own; the limiters beyond these share the last.
const DASHES = ['', '7 3', '2 3', '9 3 2 3', '4 2', '12 4', '1 4', '6 2 2 2 2 2'];
const REST = DASHES.length;
const lines = new Array(REST).fill(null);

// The newest count of each replica is of the second `edge` of this page's clock.
function takeCounts(replica, now) {
  const second = Math.floor(performance.now() / 1000);
  const offset = second - now.second;
  // Answers come a little earlier or later in a second.
  if (replica.offset === undefined || Math.abs(offset - replica.offset) > 1) replica.offset = offset;
  const passed = now.second - replica.now.second;
  replica.edge = now.second + replica.offset;
  for (const limiter of now.limiters) {
    const id = JSON.stringify([limiter.name, limiter.limit_type]);
    const counts = replica.counts.get(id) ?? { limiter, admitted: none(), refused: none(), would_refuse: none() };
    replica.counts.set(id, counts);
    for (const sort of SORTS) {
      const came = passed > 0 ? limiter[sort].slice(-passed) : [];
      const missing = new Array(Math.min(Math.max(passed - came.length, 0), SECONDS)).fill(0);
      counts[sort] = counts[sort].concat(missing, came).slice(-SECONDS);
    }
  }
}

const sum = (counts) => counts.reduce((total, count) => total + count, 0);

// The counts of all replicas, up to the last second that is known of each that still answers.
function series() {
  const edge = Math.min(...live().map((replica) => replica.edge));
  const all = new Map();
  for (const replica of replicas.values()) {
    for (const [id, { limiter, ...counts }] of replica.counts) {
      if (!all.has(id)) {
        all.set(id, {
          id, name: limiter.name || '(no name)', type: limiter.limit_type,
          admitted: none(), refused: none(), would_refuse: none(),
        });
      }
      const total = all.get(id);
      const behind = replica.edge - edge;
      for (const sort of SORTS) {
        for (let n = 0; n < SECONDS; n += 1) total[sort][n] += counts[sort][n - behind] ?? 0;
      }
    }
  }
  const rows = [...all.values()].map((one) => ({ ...one, sums: Object.fromEntries(SORTS.map((sort) => [sort, sum(one[sort])])) }));
  rows.sort((one, two) => two.sums.refused - one.sums.refused || two.sums.admitted - one.sums.admitted
    || one.name.localeCompare(two.name) || one.type.localeCompare(two.type));
  return rows;
}

// The busiest limiters have lines of their own, and keep them while they are among the busiest.
function chooseLines(rows) {
  const busiest = new Set(rows.toSorted((one, two) => (two.sums.admitted + two.sums.refused) - (one.sums.admitted + one.sums.refused))
    .slice(0, REST).map(({ id }) => id));
  for (const [n, id] of lines.entries()) if (!busiest.delete(id)) lines[n] = null;
  for (const id of busiest) lines[lines.indexOf(null)] = id;
  for (const row of rows) {
    const line = lines.indexOf(row.id);
    row.line = line < 0 ? REST : line;
  }
}

function swatch(n) {
  const image = at('swatch').content.firstElementChild.cloneNode(true);
  image.classList.add(`s${n}`);
  image.firstElementChild.setAttribute('stroke-dasharray', DASHES[n] ?? '');
  return image;
}

let shown = [];

function showTraffic() {
  shown = series();
  chooseLines(shown);
  const rows = shown.map((row) => {
    const cell = (value, isBad) => make('td', isBad && value > 0 ? 'number some' : 'number', number(value));
    const last = (sort) => row[sort][SECONDS - 1];
    const name = make('th', '', swatch(row.line), row.name, make('span', 'type', row.type));
    name.scope = 'row';
    return make('tr', '', name, cell(last('admitted')), cell(last('refused'), true),
      cell(row.sums.admitted), cell(row.sums.refused, true), cell(row.sums.would_refuse));
  });
  at('limiters').replaceChildren(...rows);
  at('no-limiters').hidden = rows.length > 0;
  const others = shown.filter(({ line }) => line === REST).length;
  at('rest').hidden = others === 0;
  if (others > 0) at('rest').replaceChildren(swatch(REST), `${others} more limiters, together as one line`);
  plot('admitted');
  plot('refused');
}

// What is drawn: each line of its own, and the others as one.
function drawn(sort) {
  const all = shown.filter(({ line }) => line < REST).map((row) => ({ line: row.line, counts: row[sort] }));
  const others = shown.filter(({ line }) => line === REST);
  const together = none().map((_, n) => sum(others.map((row) => row[sort][n])));
  return others.length > 0 ? [{ line: REST, counts: together }, ...all] : all;
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

  const plotted = drawn(sort);
  const peak = Math.max(0, ...plotted.flatMap(({ counts }) => counts));
  const top = roundUp(peak);
  const box = { left: 46, right: width - 6, top: 8, bottom: height - 18 };
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
    context.fillText(count >= 1e6 ? `${number(count / 1e6)}M` : number(count), box.left - 6, line);
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
  for (const { line, counts } of plotted) {
    context.strokeStyle = colour(`--s${line}`);
    context.setLineDash((DASHES[line] ?? '').split(' ').filter(Boolean).map(Number));
    context.beginPath();
    counts.forEach((count, n) => (n ? context.lineTo(x(n), y(count)) : context.moveTo(x(n), y(count))));
    context.stroke();
  }
  canvas.dataset.peak = peak;
  canvas.dataset.lines = plotted.length;
}

new ResizeObserver(() => {
  plot('admitted');
  plot('refused');
}).observe(at('admitted'));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', showTraffic);
