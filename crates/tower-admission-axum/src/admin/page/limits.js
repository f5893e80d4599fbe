// Overrides: search, changes and usage.

const PAGE = 200;
const LONGEST_PAGE = 10000;

let overrides = [];
let names = [];
let tiers = [];
let next = null;
let loads = 0;

// Reads the list again, or its next page. If answers arrive out of order, the answer to the last request counts. All text
// that an operator types is sent in bodies, because it may be a credential and URLs are logged.
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
  if (page.key && isTyped) replaceTypedCredential(q, page.key);
}

// Replaces a typed credential by the name of its key, so that the screen does not show it.
function replaceTypedCredential(typed, key) {
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
  at('no-limits').textContent = total > 0 ? 'No override contains this text.' : 'There are no overrides.';
  const count = `${number(rows.length)} of ${number(total)} ${isSearch ? 'found' : 'shown'}`;
  at('limits-count').textContent = total === 0 ? '' : count + (isSearch && next !== null ? ', more exist' : '');
  at('more').hidden = next === null;
}

const time = (seconds) => new Date(seconds * 1000).toLocaleString('en-GB', { dateStyle: 'medium', timeStyle: 'short' });

// The source, end, note and author of an override.
function notes({ source, in_file: inFile, end, note, author, changed_at: at }) {
  const set = [at && time(at), author && `by ${author}`].filter(Boolean).join(' ');
  return [source === 'file' && 'in the configuration', end && `until ${time(end)}`, note, set && `set ${set}`,
    inFile && `replaces ${inFile.limit} of the configuration`].filter(Boolean).join(' · ');
}

// Whether the search text is complete: it was pasted, or the field lost the focus.
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

// The key of a typed text, with its usage.
async function resolve(text) {
  const { keys: [found] } = await json('POST', 'keys/resolve', { body: { key: text } });
  return found;
}

// The current override of a key, with its tag.
async function current(key) {
  try {
    const response = await ask('GET', pathOf('limits', key));
    return { ...await response.json(), tag: response.headers.get('etag') };
  } catch (error) {
    if (error.status === 404) return { limit: null, tag: null };
    throw error;
  }
}

// Changes the override only if it is still the shown one.
const precondition = (tag) => (tag ? { 'if-match': tag } : { 'if-none-match': '*' });

// Runs the task of a form in a dialog, and shows its error there.
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
      if (error instanceof ErrorResponse && error.status === 401) fail(error);
      else at(`${what}-wrong`).textContent = messageOf(error);
    }
  });
}

// The edit form.

let edited = { key: '', tag: null };

// The time to the end, in seconds.
const SPANS = [['never', ''], ['in 15 minutes', 900], ['in 1 hour', 3600], ['in 1 day', 86400], ['in 1 week', 604800]];

// The current end stays unless the operator chooses another one.
function showSpans(end, chosen) {
  const spans = end ? [[`at ${time(end)}`, 'keep'], ...SPANS] : SPANS;
  at('edit-for').replaceChildren(...spans.map(([text, value]) => new Option(text, value)));
  at('edit-for').value = chosen ?? (end ? 'keep' : '');
}

function editedBody() {
  const body = { limit: at('edit-limit').value };
  const note = at('edit-note').value.trim();
  if (note) body.note = note;
  const span = at('edit-for').value;
  if (span === 'keep') body.end = edited.end;
  else if (span) body.for_seconds = Number(span);
  return body;
}

// A hint about the limit that the new override replaces.
function replacementHint() {
  const { now } = edited;
  if (now.source === 'file') return `The configuration has ${now.limit}. The override replaces it.`;
  const isEnding = !['', 'keep'].includes(at('edit-for').value);
  if (!now.limit || !isEnding || at('edit-limit').value === now.limit) return '';
  return `The current override is ${now.limit}. It does not return when the new one expires: set it again then.`;
}

const showReplacementHint = () => { at('edit-replaces').textContent = replacementHint(); };
at('edit-form').addEventListener('input', showReplacementHint);

const edit = (key, limit, span) => attempt(async () => {
  const now = key ? await current(key) : { limit: null, tag: null };
  edited = { key, tag: now.tag, end: now.end, now };
  showSpans(now.end, span);
  at('edit-note').value = now.note ?? '';
  at('edit-title').textContent = !key ? 'Add an override' : now.tag ? 'Edit the override' : 'Set an override';
  at('edit-key').value = key;
  at('edit-key').readOnly = key !== '';
  at('edit-limit').value = limit ?? now.limit ?? '';
  at('edit-wrong').textContent = '';
  at('edit-conflict').hidden = true;
  showReplacementHint();
  at('edit-names').textContent = 'A quota, a number and “concurrent”, “unlimited” or “deny all”. Separate several with commas.'
    + (names.length ? ` To limit one name only: ${names[0]}=…; the names are ${names.join(', ')}.` : '')
    + (tiers.length ? ` To select a tier: tier=${tiers[0]}; the tiers are ${tiers.join(', ')}.` : '');
  at('edit-usage').replaceChildren();
  at('usage-dialog').close();
  at('edit-dialog').showModal();
  at(key ? 'edit-limit' : 'edit-key').focus();
  if (!key) return;
  const mine = edited;
  const { usage } = await json('GET', pathOf('usage', key));
  // The operator may have opened another key.
  if (edited === mine) at('edit-usage').replaceChildren(...bars(usage));
});

// One hour, so that a forgotten ban expires.
const ban = (key) => edit(key, 'deny all', 3600);

onSubmit('edit', async () => {
  const key = edited.key || (await resolve(at('edit-key').value.trim())).key;
  at('edit-key').value = key;
  const body = editedBody();
  try {
    await ask('PUT', pathOf('limits', key), { body, headers: precondition(edited.tag) });
  } catch (error) {
    if (error.status !== 412) throw error;
    // The next click replaces the override that is shown now.
    edited.tag = error.tag;
    const { current: theirs, wanted } = error.problem;
    at('conflict-theirs').textContent = theirs?.limit ?? 'no override';
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

// The limit of a key after the deletion of its override.
function fallback({ in_file: inFile }) {
  if (inFile) return `Then the override of the configuration applies: ${inFile.limit}.`;
  if (tiers.length > 0) return 'Then the limit of its tier applies, or the default if it has no tier.';
  return 'Then the default applies.';
}

const confirmDelete = (key) => attempt(async () => {
  const now = await current(key);
  if (now.source !== 'override') return refresh();
  deleting = { key, tag: now.tag };
  at('delete-key').textContent = key;
  at('delete-limit').textContent = now.limit;
  at('delete-fallback').textContent = fallback(now);
  at('delete-wrong').textContent = '';
  at('delete-dialog').showModal();
  return undefined;
});

onSubmit('delete', async () => {
  try {
    await ask('DELETE', pathOf('limits', deleting.key), { headers: precondition(deleting.tag) });
  } catch (error) {
    // Another operator was first.
    if (error.status === 404 || (error.status === 412 && error.problem.current === null)) return true;
    if (error.status !== 412) throw error;
    deleting.tag = error.tag;
    at('delete-limit').textContent = error.problem.current.limit;
    at('delete-wrong').textContent = 'Another operator changed the override. Its new limit is shown above.';
    return false;
  }
  return true;
});

// Usage of a key.

function bars(usage) {
  return usage.map((used) => {
    const name = used.name || '(no name)';
    const sort = used.is_override ? `${used.sort}, override` : used.sort;
    const here = used.here === null ? '' : `, ${number(used.here)} in this process`;
    const note = used.counted_in === 'store' ? `in the store${here}` : 'in this process';
    return bar(used.tier ? `${name} (${used.tier})` : name, sort, used.used, used.limit, note);
  });
}

// The list entry that decides about a key, before all limits.
function listEntryText({ key, list, source, end }) {
  const what = list === 'deny' ? 'Banned' : 'Exempt from rates and from limits per key';
  const until = end ? ` until ${time(end)}` : '';
  return `${what} by ${key}${until} (${source === 'file' ? 'in the configuration' : 'set at run time'}).`;
}

let usageKey = '';

const showUsage = (key) => attempt(async () => presentUsage(await json('GET', pathOf('usage', key))));

function presentUsage({ key, limit, listed, usage, replica, store }) {
  usageKey = key;
  at('usage-key').textContent = key;
  at('usage-override').textContent = limit === null ? 'No override: the default applies.' : `Override: ${limit}`;
  at('usage-listed').textContent = listed ? listEntryText(listed) : '';
  at('usage-listed').hidden = !listed;
  at('usage').replaceChildren(...bars(usage));
  at('no-usage').hidden = usage.length > 0;
  const isHere = usage.some((used) => used.here !== null);
  at('usage-place').textContent = (isHere ? `“This process” is ${replica.host} (pid ${replica.pid}).` : '')
    + (store?.status === 'failing' ? ' The store does not answer, so its counts are unknown.' : '');
  if (!at('usage-dialog').open) at('usage-dialog').showModal();
}

at('usage-close').addEventListener('click', () => at('usage-dialog').close());
at('usage-again').addEventListener('click', () => showUsage(usageKey));
at('usage-edit').addEventListener('click', () => edit(usageKey));
at('usage-ban').addEventListener('click', () => ban(usageKey));
