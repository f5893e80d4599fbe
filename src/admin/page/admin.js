// What happens on the page. Text comes in by `textContent` only.
'use strict';

const SECONDS = 120;
const PAGE = 1000;
// Rows that are shown of those that are loaded; the search finds the others.
const ROWS = 500;
const TOKEN = 'admission-token';
const BASE = new URL('.', document.currentScript.src);

const at = (id) => document.getElementById(id);

function make(name, className, ...content) {
  const element = document.createElement(name);
  if (className) element.className = className;
  for (const item of content) element.append(item);
  return element;
}

function button(text, label, click) {
  const made = make('button', '', text);
  made.type = 'button';
  made.setAttribute('aria-label', label);
  made.addEventListener('click', click);
  return made;
}

// What the server is asked.

class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function ask(method, path, { body, signal } = {}) {
  const headers = { authorization: `Bearer ${sessionStorage.getItem(TOKEN) ?? ''}` };
  if (body !== undefined) headers['content-type'] = 'application/json';
  const response = await fetch(new URL(path, BASE), {
    method, headers, signal, body: body && JSON.stringify(body), cache: 'no-store',
  });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Refused(response.status, problem.detail ?? `The server answers ${response.status}.`);
}

const json = async (method, path, options) => (await ask(method, path, options)).json();
const of = (folder, key) => `${folder}/${encodeURIComponent(key)}`;

function told(error) {
  if (error instanceof Refused) return error.message;
  return 'The server cannot be reached.';
}

function fail(error) {
  if (error instanceof Refused && error.status === 401) {
    signOut('This token is not accepted.');
    return;
  }
  at('error').textContent = told(error);
  at('error').hidden = false;
}

// Runs what a click asks for, and says what went wrong.
async function attempt(task) {
  at('error').hidden = true;
  try {
    await task();
  } catch (error) {
    fail(error);
  }
}

// The token.

function signOut(why = '') {
  sessionStorage.removeItem(TOKEN);
  stopListening();
  at('main').hidden = true;
  at('sign-out').hidden = true;
  for (const dialog of document.querySelectorAll('dialog[open]')) dialog.close();
  at('token').value = '';
  at('token-wrong').textContent = why;
  at('token-dialog').showModal();
}

function signIn() {
  at('main').hidden = false;
  at('sign-out').hidden = false;
  listen();
  attempt(() => load());
}

at('sign-out').addEventListener('click', () => signOut());
at('token-dialog').addEventListener('cancel', (event) => event.preventDefault());
at('token-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const token = at('token').value.trim();
  // What no header can hold would be told as a server that cannot be reached.
  if (!/^[A-Za-z0-9\-._~+/]+=*$/.test(token)) {
    at('token-wrong').textContent = 'A token consists of letters, digits and -._~+/=.';
    return;
  }
  sessionStorage.setItem(TOKEN, token);
  at('token').value = '';
  at('token-wrong').textContent = '';
  at('token-dialog').close();
  signIn();
});

// Events.

let listening = null;

function stopListening() {
  listening?.abort();
  listening = null;
  state('', 'Not connected');
}

function state(className, text) {
  if (at('state').textContent === text) return;
  at('state').className = className;
  at('state').textContent = text;
}

async function listen() {
  listening?.abort();
  const mine = new AbortController();
  listening = mine;
  state('', 'Connecting');
  while (!mine.signal.aborted) {
    try {
      const response = await ask('GET', 'events', { signal: mine.signal });
      await read(response.body);
      state('lost', 'Connection lost, connecting again');
    } catch (error) {
      if (mine.signal.aborted) return;
      if (error instanceof Refused && error.status === 401) return fail(error);
      state('lost', `${told(error)} Trying again`);
    }
    await new Promise((done) => setTimeout(done, 2000));
  }
}

// Server-sent events out of a body, as they come in.
async function read(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split('\n\n');
    text = events.pop();
    for (const event of events) take(event);
  }
}

function take(event) {
  const fields = { event: 'message', data: '' };
  for (const line of event.split('\n')) {
    const colon = line.indexOf(':');
    if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
  }
  if (fields.event === 'history') takeHistory(JSON.parse(fields.data));
  if (fields.event === 'second') takeSecond(JSON.parse(fields.data));
}

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

// Limits of single keys.

let limits = [];
let names = [];
let next = null;

async function load(after) {
  const query = new URLSearchParams({ count: PAGE });
  if (after) query.set('after', after);
  const page = await json('GET', `limits?${query}`);
  limits = after ? limits.concat(page.limits) : page.limits;
  ({ names, next } = page);
  showLimits();
}

function showLimits() {
  const search = at('search').value.trim().toLowerCase();
  const found = limits.filter(({ key, limit }) => `${key} ${limit}`.toLowerCase().includes(search));
  const rows = found.slice(0, ROWS).map(({ key, limit }) => make('tr', '',
    make('td', 'key', key), make('td', 'limit', limit),
    make('td', 'actions',
      button('Usage', `Usage of ${key}`, () => showUsage(key)),
      button('Edit…', `Edit ${key}`, () => edit(key, limit)),
      button('Delete…', `Delete ${key}`, () => confirmDelete(key, limit)))));
  at('limits').replaceChildren(...rows);
  at('no-limits').hidden = limits.length > 0;
  at('limits-count').textContent = limits.length === 0 ? ''
    : `${rows.length} shown of ${limits.length} loaded${next === null ? '' : ', and there are more'}`;
  at('more').hidden = next === null;
}

at('search').addEventListener('input', showLimits);
at('more').addEventListener('click', () => attempt(() => load(next)));
at('add').addEventListener('click', () => edit('', ''));

function put(key, limit) {
  limits = limits.filter((entry) => entry.key !== key);
  if (limit !== null) {
    const place = limits.findIndex((entry) => entry.key > key);
    limits.splice(place < 0 ? limits.length : place, 0, { key, limit });
  }
  showLimits();
}

// Has a form in a dialog do something, and says in it what went wrong.
function onSubmit(what, task) {
  at(`${what}-cancel`).addEventListener('click', () => at(`${what}-dialog`).close());
  at(`${what}-form`).addEventListener('submit', async (event) => {
    event.preventDefault();
    at(`${what}-wrong`).textContent = '';
    try {
      await task();
      at(`${what}-dialog`).close();
    } catch (error) {
      if (error instanceof Refused && error.status === 401) fail(error);
      else at(`${what}-wrong`).textContent = told(error);
    }
  });
}

function edit(key, limit) {
  at('edit-title').textContent = key ? 'Edit a limit' : 'Add a limit';
  at('edit-key').value = key;
  at('edit-key').readOnly = key !== '';
  at('edit-limit').value = limit;
  at('edit-wrong').textContent = '';
  at('edit-names').textContent = 'A quota, a number and “concurrent”, or “deny all”; with commas between several.'
    + (names.length ? ` For one limit only: ${names[0]}=…; there are ${names.join(', ')}.` : '');
  at('edit-dialog').showModal();
  at(key ? 'edit-limit' : 'edit-key').focus();
}

onSubmit('edit', async () => {
  const body = { limit: at('edit-limit').value };
  const { key, limit } = await json('PUT', of('limits', at('edit-key').value.trim()), { body });
  put(key, limit);
});

let deleting = '';

function confirmDelete(key, limit) {
  deleting = key;
  at('delete-key').textContent = key;
  at('delete-limit').textContent = limit;
  at('delete-wrong').textContent = '';
  at('delete-dialog').showModal();
}

onSubmit('delete', async () => {
  try {
    await ask('DELETE', of('limits', deleting));
  } catch (error) {
    // Somebody else was first.
    if (error.status !== 404) throw error;
  }
  put(deleting, null);
});

// Usage of a key.

at('usage-form').addEventListener('submit', (event) => {
  event.preventDefault();
  showUsage(at('usage-key').value.trim());
});

function showUsage(key) {
  return attempt(async () => {
    at('usage-key').value = key;
    const { key: shown, limit, usage } = await json('GET', of('usage', key));
    at('usage-of').textContent = `${shown}: ${limit ?? 'the default applies'}`;
    at('usage').replaceChildren(...usage.map((used) =>
      bar(used.name || '(no name)', used.is_own ? `${used.sort}, its own` : used.sort, used.used, used.limit)));
    at('usage-title').scrollIntoView({ block: 'nearest' });
  });
}

if (sessionStorage.getItem(TOKEN)) signIn();
else signOut();
