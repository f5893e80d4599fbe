// Requests per second, of all replicas together.

const SECONDS = 120;
const OUTCOMES = ['admitted', 'rejected', 'would_reject'];
const zeros = () => new Array(SECONDS).fill(0);

// Each line has its own colour and dash pattern. Further limiters share the last line.
const DASHES = ['', '7 3', '2 3', '9 3 2 3', '4 2', '12 4', '1 4', '6 2 2 2 2 2'];
const OTHERS = DASHES.length;
const lines = new Array(OTHERS).fill(null);

// The newest count of each replica belongs to the second `edge` of the clock of this page.
function addCounts(replica, now) {
  const second = Math.floor(performance.now() / 1000);
  const offset = second - now.second;
  // Answers arrive a little earlier or later within a second.
  if (replica.offset === undefined || Math.abs(offset - replica.offset) > 1) replica.offset = offset;
  const passed = now.second - replica.now.second;
  replica.edge = now.second + replica.offset;
  for (const limiter of now.limiters) {
    const id = JSON.stringify([limiter.name, limiter.limit_type]);
    const counts = replica.counts.get(id) ?? { limiter, admitted: zeros(), rejected: zeros(), would_reject: zeros() };
    replica.counts.set(id, counts);
    for (const outcome of OUTCOMES) {
      const came = passed > 0 ? limiter[outcome].slice(-passed) : [];
      const missing = new Array(Math.min(Math.max(passed - came.length, 0), SECONDS)).fill(0);
      counts[outcome] = counts[outcome].concat(missing, came).slice(-SECONDS);
    }
  }
}

const sum = (counts) => counts.reduce((total, count) => total + count, 0);

// The counts of all replicas, up to the last second that all answering replicas have reported.
function series() {
  const edge = Math.min(...answeringReplicas().map((replica) => replica.edge));
  const all = new Map();
  for (const replica of replicas.values()) {
    for (const [id, { limiter, ...counts }] of replica.counts) {
      if (!all.has(id)) {
        all.set(id, {
          id, name: limiter.name || '(no name)', type: limiter.limit_type,
          admitted: zeros(), rejected: zeros(), would_reject: zeros(),
        });
      }
      const total = all.get(id);
      const behind = replica.edge - edge;
      for (const outcome of OUTCOMES) {
        for (let n = 0; n < SECONDS; n += 1) total[outcome][n] += counts[outcome][n - behind] ?? 0;
      }
    }
  }
  const rows = [...all.values()].map((one) => ({ ...one, sums: Object.fromEntries(OUTCOMES.map((outcome) => [outcome, sum(one[outcome])])) }));
  rows.sort((one, two) => two.sums.rejected - one.sums.rejected || two.sums.admitted - one.sums.admitted
    || one.name.localeCompare(two.name) || one.type.localeCompare(two.type));
  return rows;
}

// The busiest limiters have their own lines, and keep them while they are among the busiest.
function chooseLines(rows) {
  const busiest = new Set(rows.toSorted((one, two) => (two.sums.admitted + two.sums.rejected) - (one.sums.admitted + one.sums.rejected))
    .slice(0, OTHERS).map(({ id }) => id));
  for (const [n, id] of lines.entries()) if (!busiest.delete(id)) lines[n] = null;
  for (const id of busiest) lines[lines.indexOf(null)] = id;
  for (const row of rows) {
    const line = lines.indexOf(row.id);
    row.line = line < 0 ? OTHERS : line;
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
    const last = (outcome) => row[outcome][SECONDS - 1];
    const name = make('th', '', swatch(row.line), row.name, make('span', 'type', row.type));
    name.scope = 'row';
    return make('tr', '', name, cell(last('admitted')), cell(last('rejected'), true),
      cell(row.sums.admitted), cell(row.sums.rejected, true), cell(row.sums.would_reject));
  });
  at('limiters').replaceChildren(...rows);
  at('no-limiters').hidden = rows.length > 0;
  const others = shown.filter(({ line }) => line === OTHERS).length;
  at('others').hidden = others === 0;
  if (others > 0) at('others').replaceChildren(swatch(OTHERS), `${others} more limiters, as one line`);
  plot('admitted');
  plot('rejected');
}

// The drawn lines: one for each of the busiest limiters, and one for all others.
function drawn(outcome) {
  const all = shown.filter(({ line }) => line < OTHERS).map((row) => ({ line: row.line, counts: row[outcome] }));
  const others = shown.filter(({ line }) => line === OTHERS);
  const together = zeros().map((_, n) => sum(others.map((row) => row[outcome][n])));
  return others.length > 0 ? [{ line: OTHERS, counts: together }, ...all] : all;
}

// The next round number for an axis.
function roundUp(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return [1, 2, 5, 10].map((step) => step * power).find((step) => step >= value);
}

function plot(outcome) {
  const canvas = at(outcome);
  const { clientWidth: width, clientHeight: height } = canvas;
  if (width === 0) return;
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext('2d');
  context.scale(scale, scale);
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();

  const plotted = drawn(outcome);
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
  plot('rejected');
}).observe(at('admitted'));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', showTraffic);
