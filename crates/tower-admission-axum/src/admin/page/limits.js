// Limits of single keys: found, changed, and how far they are used up.

const PAGE = 200;
const LONGEST_PAGE = 10000;

let overrides = [];
let names = [];
let tiers = [];
let next = null;
let loads = 0;

// Reads the list again, or more of it. If answers overtake each other, the last one counts. All text that an operator
// types is sent in bodies: it may be a credential, and URLs are logged.
async function load(after) {
  loads += 1;
  const mine = loads;
  const q = at('search').value.trim();
  const count = after ? PAGE : Math.min(Math.max(PAGE, overrides.length), LONGEST_PAGE);
  const page = await json('POST', 'search', { body: { q, count, after } });
  if (mine !== loads) return;
  overrides = after ? overrides.concat(page.limits) : page.limits;
  ({ names, tiers, next } = page);
  showLimits(page.total);
  if (page.key && isTyped) nameSearch(q, page.key);
}

// A credential does not stay in sight: its key has a name.
function nameSearch(typed, key) {
  if (at('search').value.trim() === typed) at('search').value = key;
}

function showLimits(total) {
  const rows = overrides.map((entry) => {
    const { key, limit, source } = entry;
    const buttons = [
      button('Usage', `Usage of ${key}`, () => showUsage(key)),
      button('Edit…', `Edit ${key}`, () => edit(key)),
    ];
    if (source === 'override') buttons.push(button('Delete…', `Delete ${key}`, () => confirmDelete(key)));
    return make('tr', '', make('td', 'key', key), make('td', 'limit', limit, make('span', 'type', notes(entry))),
      make('td', 'actions', ...buttons));
  });
  replaceRows(at('limits'), rows);
  const isSearch = at('search').value.trim() !== '';
  at('no-limits').hidden = rows.length > 0;
  at('no-limits').textContent = total > 0 ? 'No key or limit has this text.' : 'No key has a limit of its own.';
  const count = `${number(rows.length)} of ${number(total)} ${isSearch ? 'found' : 'shown'}`;
  at('limits-count').textContent = total === 0 ? '' : count + (isSearch && next !== null ? ', and there are more' : '');
  at('more').hidden = next === null;
}

const time = (seconds) => new Date(seconds * 1000).toLocaleString('en-GB', { dateStyle: 'medium', timeStyle: 'short' });

// What is noted about a limit: where it is set, its end, its note, and its author.
function notes({ source, in_file: inFile, end, note, author, changed_at: at }) {
  const set = [at && time(at), author && `by ${author}`].filter(Boolean).join(' ');
  return [source === 'file' && 'in the configuration', end && `until ${time(end)}`, note, set && `set ${set}`,
    inFile && `in place of ${inFile.limit} in the configuration`].filter(Boolean).join(' · ');
}

// Whether the text to search for is complete: it was pasted, or the field was left.
let isTyped = true;
let searching;
function search(delay) {
  clearTimeout(searching);
  searching = setTimeout(() => {
    overrides = [];
    attempt(() => load());
  }, delay);
}
at('search').addEventListener('input', (event) => {
  isTyped = event.inputType === 'insertFromPaste';
  search(150);
});
at('search').addEventListener('change', () => {
  isTyped = true;
  search(0);
});
at('find-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const typed = at('search').value.trim();
  if (!typed) return;
  clearTimeout(searching);
  isTyped = true;
  overrides = [];
  attempt(async () => {
    const [found] = await Promise.all([resolve(typed), load()]);
    presentUsage(found);
  });
});
at('more').addEventListener('click', () => attempt(() => load(next)));
at('add').addEventListener('click', () => edit(''));

// The key of a text that an operator has typed, and its usage.
async function resolve(text) {
  const { keys: [found] } = await json('POST', 'keys/resolve', { body: { key: text } });
  return found;
}

// What a key has now, with the tag that a change of it is made by.
async function current(key) {
  try {
    const response = await ask('GET', of('limits', key));
    return { ...await response.json(), tag: response.headers.get('etag') };
  } catch (error) {
    if (error.status === 404) return { limit: null, tag: null };
    throw error;
  }
}

// A change is made only to what was shown.
const only = (tag) => (tag ? { 'if-match': tag } : { 'if-none-match': '*' });

// Has a form in a dialog do something, and says in it what went wrong.
function onSubmit(what, task) {
  at(`${what}-cancel`).addEventListener('click', () => at(`${what}-dialog`).close());
  at(`${what}-form`).addEventListener('submit', async (event) => {
    event.preventDefault();
    at(`${what}-wrong`).textContent = '';
    try {
      if (await task() === false) return;
      at(`${what}-dialog`).close();
      await refresh();
    } catch (error) {
      if (error instanceof Refused && error.status === 401) fail(error);
      else at(`${what}-wrong`).textContent = told(error);
    }
  });
}

// The edit form, which is made for what the key has.

let edited = { key: '', tag: null };

// For how long, in seconds.
const SPANS = [['without an end', ''], ['for 15 minutes', 900], ['for 1 hour', 3600], ['for 1 day', 86400], ['for 1 week', 604800]];

// The end that a key has stays unless another one is chosen.
function showSpans(end, chosen) {
  const spans = end ? [[`until ${time(end)}`, 'keep'], ...SPANS] : SPANS;
  at('edit-for').replaceChildren(...spans.map(([text, value]) => new Option(text, value)));
  at('edit-for').value = chosen ?? (end ? 'keep' : '');
}

function whatIsEdited() {
  const body = { limit: at('edit-limit').value };
  const note = at('edit-note').value.trim();
  if (note) body.note = note;
  const span = at('edit-for').value;
  if (span === 'keep') body.end = edited.end;
  else if (span) body.for_seconds = Number(span);
  return body;
}

// What becomes of the limit that a key has when another one is to be set.
function had() {
  const { now } = edited;
  if (now.source === 'file') return `The configuration has ${now.limit}. This applies in place of it.`;
  const isEnding = !['', 'keep'].includes(at('edit-for').value);
  if (!now.limit || !isEnding || at('edit-limit').value === now.limit) return '';
  return `It has ${now.limit} now, which does not come back when the new limit ends: set it again then.`;
}

const showHad = () => { at('edit-had').textContent = had(); };
at('edit-form').addEventListener('input', showHad);

const edit = (key, limit, span) => attempt(async () => {
  const now = key ? await current(key) : { limit: null, tag: null };
  edited = { key, tag: now.tag, end: now.end, now };
  showSpans(now.end, span);
  at('edit-note').value = now.note ?? '';
  at('edit-title').textContent = !key ? 'Add a limit' : now.tag ? 'Edit a limit' : 'Set a limit';
  at('edit-key').value = key;
  at('edit-key').readOnly = key !== '';
  at('edit-limit').value = limit ?? now.limit ?? '';
  at('edit-wrong').textContent = '';
  at('edit-conflict').hidden = true;
  showHad();
  at('edit-names').textContent = 'A quota, a number and “concurrent”, or “deny all”; with commas between several.'
    + (names.length ? ` For one limit only: ${names[0]}=…; the names are ${names.join(', ')}.` : '')
    + (tiers.length ? ` For a tier: tier=${tiers[0]}; the tiers are ${tiers.join(', ')}.` : '');
  at('edit-usage').replaceChildren();
  at('usage-dialog').close();
  at('edit-dialog').showModal();
  at(key ? 'edit-limit' : 'edit-key').focus();
  if (!key) return;
  const mine = edited;
  const { usage } = await json('GET', of('usage', key));
  // Another key may be edited by now.
  if (edited === mine) at('edit-usage').replaceChildren(...bars(usage));
});

// An hour, so that a ban that is forgotten ends.
const ban = (key) => edit(key, 'deny all', 3600);

onSubmit('edit', async () => {
  const key = edited.key || (await resolve(at('edit-key').value.trim())).key;
  at('edit-key').value = key;
  const body = whatIsEdited();
  try {
    await ask('PUT', of('limits', key), { body, headers: only(edited.tag) });
  } catch (error) {
    if (error.status !== 412) throw error;
    // The next click is about what is shown now.
    edited.tag = error.tag;
    const { current: theirs, wanted } = error.problem;
    at('conflict-theirs').textContent = theirs?.limit ?? 'no limit of its own';
    at('conflict-theirs-notes').textContent = theirs ? notes(theirs) : '';
    at('conflict-mine').textContent = wanted.limit;
    at('conflict-mine-notes').textContent = notes(wanted);
    at('edit-conflict').hidden = false;
    at('keep-theirs').focus();
    return false;
  }
  return true;
});
at('keep-theirs').addEventListener('click', () => {
  at('edit-dialog').close();
  refresh();
});

let deleting = { key: '', tag: null };

// What applies to a key after its override is deleted.
function below({ in_file: inFile }) {
  if (inFile) return `After this the limit of the configuration applies: ${inFile.limit}.`;
  if (tiers.length > 0) return 'After this the limit of its tier applies, or the default if it has none.';
  return 'After this the default applies.';
}

const confirmDelete = (key) => attempt(async () => {
  const now = await current(key);
  if (now.source !== 'override') return refresh();
  deleting = { key, tag: now.tag };
  at('delete-key').textContent = key;
  at('delete-limit').textContent = now.limit;
  at('delete-after').textContent = below(now);
  at('delete-wrong').textContent = '';
  at('delete-dialog').showModal();
  return undefined;
});

onSubmit('delete', async () => {
  try {
    await ask('DELETE', of('limits', deleting.key), { headers: only(deleting.tag) });
  } catch (error) {
    // Another operator was first.
    if (error.status === 404 || (error.status === 412 && error.problem.current === null)) return true;
    if (error.status !== 412) throw error;
    deleting.tag = error.tag;
    at('delete-limit').textContent = error.problem.current.limit;
    at('delete-wrong').textContent = 'It was changed meanwhile: the limit above is the new one.';
    return false;
  }
  return true;
});

// Usage of a key.

function bars(usage) {
  return usage.map((used) => {
    const name = used.name || '(no name)';
    const sort = used.is_own ? `${used.sort}, its own` : used.sort;
    const here = used.here === null ? '' : `, ${number(used.here)} in this process`;
    const note = used.counted_in === 'store' ? `in the store${here}` : 'in this process';
    return bar(used.tier ? `${name} (${used.tier})` : name, sort, used.used, used.limit, note);
  });
}

// The list entry that decides about a key, before any limit.
function listing({ key, list, source, end }) {
  const what = list === 'deny' ? 'Banned' : 'Exempt from rates and from limits per key';
  const until = end ? ` until ${time(end)}` : '';
  return `${what} by ${key}${until} (${source === 'file' ? 'of the configuration' : 'set at run time'}).`;
}

let lookedAt = '';

const showUsage = (key) => attempt(async () => presentUsage(await json('GET', of('usage', key))));

function presentUsage({ key, limit, listed, usage, replica, store }) {
  lookedAt = key;
  at('usage-key').textContent = key;
  at('usage-of').textContent = limit === null ? 'It has no limit of its own: the default applies.' : `Its own limit: ${limit}`;
  at('usage-listed').textContent = listed ? listing(listed) : '';
  at('usage-listed').hidden = !listed;
  at('usage').replaceChildren(...bars(usage));
  at('no-usage').hidden = usage.length > 0;
  const isHere = usage.some((used) => used.here !== null);
  at('usage-from').textContent = (isHere ? `“This process” is ${replica.host} (pid ${replica.pid}).` : '')
    + (store?.status === 'failing' ? ' The store does not answer, so its counts are not known.' : '');
  if (!at('usage-dialog').open) at('usage-dialog').showModal();
}

at('usage-close').addEventListener('click', () => at('usage-dialog').close());
at('usage-again').addEventListener('click', () => showUsage(lookedAt));
at('usage-edit').addEventListener('click', () => edit(lookedAt));
at('usage-ban').addEventListener('click', () => ban(lookedAt));
