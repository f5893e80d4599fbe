// Polls the server each second, and shows whether answers arrive and the store decides.
//
// It polls instead of reading a stream: six tabs with a stream would use all connections that a browser opens to a host
// over HTTP/1.1. Behind a load balancer the answers come from all replicas in turn.

const POLL_INTERVAL = 1000;
// After this time without an answer the shown data is old.
const STALE_AFTER = 3000;
// A replica is forgotten after this time without an answer: it was stopped or replaced.
const FORGET_AFTER = 120_000;

// The replicas by id, each with its last answer, its counts, and the time of the answer.
const replicas = new Map();
let polling = null;
let lastAnswerAt = null;
let lastError = '';

const nameOf = ({ now: { replica } }) => `${replica.host} (pid ${replica.pid})`;

// The replicas that still answer. Of several replicas each gets fewer polls.
function answeringReplicas() {
  for (const [id, { at: when }] of replicas) {
    if (performance.now() - when > FORGET_AFTER) replicas.delete(id);
  }
  const timeout = Math.max(5000, 3 * POLL_INTERVAL * replicas.size);
  return [...replicas.values()].filter(({ at: when }) => performance.now() - when < timeout)
    .sort((one, two) => nameOf(one).localeCompare(nameOf(two)));
}

function stopPolling() {
  polling?.abort();
  polling = null;
  lastAnswerAt = null;
  lastError = '';
  replicas.clear();
  showState();
}

async function startPolling() {
  stopPolling();
  const mine = new AbortController();
  polling = mine;
  showState();
  while (!mine.signal.aborted) {
    const began = performance.now();
    try {
      const seen = [...replicas].map(([id, { now }]) => `${id}:${now.second}`);
      const signal = AbortSignal.any([mine.signal, AbortSignal.timeout(5 * POLL_INTERVAL)]);
      const now = await json('GET', `now?${new URLSearchParams({ seen })}`, { signal });
      lastAnswerAt = performance.now();
      lastError = '';
      applyAnswer(now);
    } catch (error) {
      if (mine.signal.aborted) return;
      if (error instanceof ErrorResponse && error.status === 401) return fail(error);
      lastError = messageOf(error);
    }
    showState();
    const rest = POLL_INTERVAL - (performance.now() - began);
    await new Promise((done) => setTimeout(done, Math.max(rest, 100)));
    await untilVisible();
  }
}

// A hidden tab does not poll.
function untilVisible() {
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

function applyAnswer(now) {
  const { id } = now.replica;
  const replica = replicas.get(id) ?? { now: { second: -1, revision: null }, counts: new Map(), edge: null };
  const isChanged = replica.now.revision !== now.revision;
  replicas.set(id, replica);
  addCounts(replica, now);
  Object.assign(replica, { now, at: performance.now() });
  showTraffic();
  showInFlight();
  showRejectedKeys();
  if (isChanged || areListsStale) refresh();
}

function state(className, text) {
  at('state').className = className;
  // Screen readers read each change of a status, so it changes only if the text differs.
  if (at('state').textContent !== text) at('state').textContent = text;
}

function showState() {
  const failing = answeringReplicas().filter(({ now }) => now.store?.status === 'failing');
  const silence = lastAnswerAt === null ? Infinity : performance.now() - lastAnswerAt;
  if (!polling) state('', 'Not connected');
  else if (lastAnswerAt === null) state(lastError ? 'lost' : '', lastError ? `${lastError} Trying again` : 'Connecting');
  else if (silence > STALE_AFTER) state('lost', `No data: ${lastError || 'the server does not answer.'} Trying again`);
  else if (failing.length > 0) state('failing', 'Live, but the store fails');
  else state('live', 'Live');
  at('silent').textContent = lastAnswerAt !== null && silence > STALE_AFTER ? `for ${Math.round(silence / 1000)} s` : '';
  at('replicas').textContent = answeringReplicas().map(nameOf).join(', ');
  at('main').classList.toggle('old', silence > STALE_AFTER);
  showStore(failing);
  showLost();
}

function showLost() {
  const losing = answeringReplicas().filter(({ now }) => now.lost_overrides > 0);
  at('lost').hidden = losing.length === 0;
  if (losing.length === 0) return;
  const most = Math.max(...losing.map(({ now }) => now.lost_overrides));
  const text = `The store has lost ${number(most)} overrides. These replicas still enforce them: ${losing.map(nameOf).join(', ')}. `
    + 'Do not restart them. Export the overrides from one of them (tower-admission limits export, --admin), and '
    + 'import the file (limits import, --redis); or accept the loss (limits accept-loss).';
  if (at('lost').textContent !== text) at('lost').textContent = text;
}

function showStore(failing) {
  const [first] = failing;
  at('store').hidden = !first;
  if (!first) return;
  const { failure_mode: mode, since, cause } = first.now.store;
  const modes = {
    open: 'all requests are admitted without counting (open)',
    closed: 'requests are rejected (closed)',
    local_share: 'each replica admits its share (local_share)',
  };
  const text = `The store fails on ${failing.map(nameOf).join(', ')} since `
    + `${new Date(since * 1000).toLocaleTimeString('en-GB')}: ${modes[mode] ?? mode}. Cause: ${cause}. `
    + 'Until it recovers, usage is that of one process.';
  if (at('store').textContent !== text) at('store').textContent = text;
}

setInterval(showState, 500);
