// Asks each second what happens, and shows whether the answers come and the store decides.
//
// It asks and does not listen: six tabs that listen would take all connections that a browser has to a host over
// HTTP/1.1. Behind a load balancer each answer may be another replica's, so all of them are heard in turn.

const EVERY = 1000;
// After this, what is shown is old.
const LATE = 3000;
// A replica that has not answered for this long is forgotten: it was stopped, or another took its place.
const FORGOTTEN = 120_000;

// By id: the replicas that have answered, each with its last answer, its counts, and when it answered.
const replicas = new Map();
let asking = null;
let heard = null;
let trouble = '';

const nameOf = ({ now: { replica } }) => `${replica.host} (pid ${replica.pid})`;

// Those that still answer: of several each is asked more seldom.
function live() {
  for (const [id, { at: when }] of replicas) {
    if (performance.now() - when > FORGOTTEN) replicas.delete(id);
  }
  const patience = Math.max(5000, 3 * EVERY * replicas.size);
  return [...replicas.values()].filter(({ at: when }) => performance.now() - when < patience)
    .sort((one, two) => nameOf(one).localeCompare(nameOf(two)));
}

function stopAsking() {
  asking?.abort();
  asking = null;
  heard = null;
  trouble = '';
  replicas.clear();
  showState();
}

async function startAsking() {
  stopAsking();
  const mine = new AbortController();
  asking = mine;
  showState();
  while (!mine.signal.aborted) {
    const began = performance.now();
    try {
      const seen = [...replicas].map(([id, { now }]) => `${id}:${now.second}`);
      const signal = AbortSignal.any([mine.signal, AbortSignal.timeout(5 * EVERY)]);
      const now = await json('GET', `now?${new URLSearchParams({ seen })}`, { signal });
      heard = performance.now();
      trouble = '';
      take(now);
    } catch (error) {
      if (mine.signal.aborted) return;
      if (error instanceof Refused && error.status === 401) return fail(error);
      trouble = told(error);
    }
    showState();
    const rest = EVERY - (performance.now() - began);
    await new Promise((done) => setTimeout(done, Math.max(rest, 100)));
    await visible();
  }
}

// A tab that is not looked at asks nothing.
function visible() {
  if (!document.hidden) return undefined;
  return new Promise((done) => {
    const look = () => {
      if (document.hidden) return;
      document.removeEventListener('visibilitychange', look);
      done();
    };
    document.addEventListener('visibilitychange', look);
  });
}

function take(now) {
  const { id } = now.replica;
  const replica = replicas.get(id) ?? { now: { second: -1, revision: null }, counts: new Map(), edge: null };
  const isChanged = replica.now.revision !== now.revision;
  replicas.set(id, replica);
  takeCounts(replica, now);
  Object.assign(replica, { now, at: performance.now() });
  showTraffic();
  showInFlight();
  showRefusedKeys();
  if (isChanged || areListsOld) refresh();
}

function state(className, text) {
  at('state').className = className;
  // A status is read out when it changes, so it changes only when it has to.
  if (at('state').textContent !== text) at('state').textContent = text;
}

function showState() {
  const failing = live().filter(({ now }) => now.store?.status === 'failing');
  const silent = heard === null ? Infinity : performance.now() - heard;
  if (!asking) state('', 'Not connected');
  else if (heard === null) state(trouble ? 'lost' : '', trouble ? `${trouble} Trying again` : 'Connecting');
  else if (silent > LATE) state('lost', `No data: ${trouble || 'the server does not answer.'} Trying again`);
  else if (failing.length > 0) state('failing', 'Live, but the store does not decide');
  else state('live', 'Live');
  at('silent').textContent = heard !== null && silent > LATE ? `for ${Math.round(silent / 1000)} s` : '';
  at('replicas').textContent = live().map(nameOf).join(', ');
  at('main').classList.toggle('old', silent > LATE);
  showStore(failing);
  showLost();
}

function showLost() {
  const losing = live().filter(({ now }) => now.lost_overrides > 0);
  at('lost').hidden = losing.length === 0;
  if (losing.length === 0) return;
  const most = Math.max(...losing.map(({ now }) => now.lost_overrides));
  const text = `The store has lost ${number(most)} limits of keys, which are still enforced by ${losing.map(nameOf).join(', ')}. `
    + 'Do not restart these processes. Export the limits from one of them (tower-admission limits export, --admin), and '
    + 'import the file (limits import, --redis); or accept the loss (limits accept-loss).';
  if (at('lost').textContent !== text) at('lost').textContent = text;
}

function showStore(failing) {
  const [first] = failing;
  at('store').hidden = !first;
  if (!first) return;
  const { failure_mode: mode, since, cause } = first.now.store;
  const modes = {
    open: 'all requests are admitted uncounted (open)',
    closed: 'requests are rejected (closed)',
    local_share: 'each replica grants its share (local_share)',
  };
  const text = `The store does not decide on ${failing.map(nameOf).join(', ')} since `
    + `${new Date(since * 1000).toLocaleTimeString('en-GB')}: ${modes[mode] ?? mode}. Cause: ${cause}. `
    + 'Meanwhile usage is that of one process.';
  if (at('store').textContent !== text) at('store').textContent = text;
}

setInterval(showState, 500);
