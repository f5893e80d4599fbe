// Limits of single keys: found, changed, and how far they are used up.

const PAGE = 200;
const LONGEST_PAGE = 10000;

let overrides = [];
let names = [];
let next = null;
let loads = 0;

// Reads what is shown anew, or more of it. Of answers that overtake each other the last one counts.
async function load(after) {
  loads += 1;
  const mine = loads;
  const count = after ? PAGE : Math.min(Math.max(PAGE, overrides.length), LONGEST_PAGE);
  const query = new URLSearchParams({ count, q: at('search').value.trim() });
  if (after) query.set('after', after);
  const page = await json('GET', `limits?${query}`);
  if (mine !== loads) return;
  overrides = after ? overrides.concat(page.limits) : page.limits;
  ({ names, next } = page);
  showLimits(page.total);
}

function showLimits(total) {
  const rows = overrides.map((entry) => {
    const { key, limit } = entry;
    return make('tr', '', make('td', 'key', key), make('td', 'limit', limit, make('span', 'type', notes(entry))),
      make('td', 'actions',
        button('Usage', `Usage of ${key}`, () => showUsage(key)),
        button('Edit…', `Edit ${key}`, () => edit(key)),
        button('Delete…', `Delete ${key}`, () => confirmDelete(key))));
  });
  replaceRows(at('limits'), rows);
  const isSearch = at('search').value.trim() !== '';
  at('no-limits').hidden = rows.length > 0;
  at('no-limits').textContent = total > 0 ? 'No key or limit has this text.' : 'No key has limits of its own.';
  const count = `${number(rows.length)} of ${number(total)} ${isSearch ? 'found' : 'shown'}`;
  at('limits-count').textContent = total === 0 ? '' : count + (isSearch && next !== null ? ', and there are more' : '');
  at('more').hidden = next === null;
}

const time = (seconds) => new Date(seconds * 1000).toLocaleString('en-GB', { dateStyle: 'medium', timeStyle: 'short' });

// What is noted about a limit: its end, its note, and who set it.
function notes({ end, note, author, changed_at: at }) {
  const set = [at && time(at), author && `by ${author}`].filter(Boolean).join(' ');
  return [end && `until ${time(end)}`, note, set && `set ${set}`].filter(Boolean).join(' · ');
}

let searching;
at('search').addEventListener('input', () => {
  clearTimeout(searching);
  searching = setTimeout(() => {
    overrides = [];
    attempt(() => load());
  }, 150);
});
at('find-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const key = at('search').value.trim();
  if (key) showUsage(key);
});
at('more').addEventListener('click', () => attempt(() => load(next)));
at('add').addEventListener('click', () => edit(''));

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
      await load();
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

const edit = (key, limit, span) => attempt(async () => {
  const now = key ? await current(key) : { limit: null, tag: null };
  edited = { key, tag: now.tag, end: now.end };
  showSpans(now.end, span);
  at('edit-note').value = now.note ?? '';
  at('edit-title').textContent = !key ? 'Add a limit' : now.tag ? 'Edit a limit' : 'Set a limit';
  at('edit-key').value = key;
  at('edit-key').readOnly = key !== '';
  at('edit-limit').value = limit ?? now.limit ?? '';
  at('edit-wrong').textContent = '';
  at('edit-conflict').hidden = true;
  at('edit-had').textContent = now.limit && limit && limit !== now.limit ? `It has ${now.limit} now.` : '';
  at('edit-names').textContent = 'A quota, a number and “concurrent”, or “deny all”; with commas between several.'
    + (names.length ? ` For one limit only: ${names[0]}=…; there are ${names.join(', ')}.` : '');
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
  const key = at('edit-key').value.trim();
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
  attempt(() => load());
});

let deleting = { key: '', tag: null };

const confirmDelete = (key) => attempt(async () => {
  const { limit, tag } = await current(key);
  if (limit === null) return load();
  deleting = { key, tag };
  at('delete-key').textContent = key;
  at('delete-limit').textContent = limit;
  at('delete-wrong').textContent = '';
  at('delete-dialog').showModal();
  return undefined;
});

onSubmit('delete', async () => {
  try {
    await ask('DELETE', of('limits', deleting.key), { headers: only(deleting.tag) });
  } catch (error) {
    // Another operator was first.
    if (error.status === 412 && error.problem.current === null) return true;
    if (error.status === 404) {
      if ((await current(deleting.key)).limit === null) return true;
      at('delete-wrong').textContent = 'It comes from the configuration of the service and stays: set another limit over it.';
      return false;
    }
    if (error.status !== 412) throw error;
    deleting.tag = error.tag;
    at('delete-limit').textContent = error.problem.current.limit;
    at('delete-wrong').textContent = 'It was changed meanwhile: see what it has now.';
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

function showUsage(key) {
  return attempt(async () => {
    const { key: shownKey, limit, listed, usage, replica, store } = await json('GET', of('usage', key));
    lookedAt = shownKey;
    at('usage-key').textContent = shownKey;
    at('usage-of').textContent = limit === null ? 'It has no limit of its own: the default applies.' : `Its own limit: ${limit}`;
    at('usage-listed').textContent = listed === null ? '' : listing(listed);
    at('usage-listed').hidden = listed === null;
    at('usage').replaceChildren(...bars(usage));
    at('no-usage').hidden = usage.length > 0;
    const isHere = usage.some((used) => used.here !== null);
    at('usage-from').textContent = (isHere ? `“This process” is ${replica.host} (pid ${replica.pid}).` : '')
      + (store?.status === 'failing' ? ' The store does not answer: what it counts is not known.' : '');
    if (!at('usage-dialog').open) at('usage-dialog').showModal();
  });
}

at('usage-close').addEventListener('click', () => at('usage-dialog').close());
at('usage-again').addEventListener('click', () => showUsage(lookedAt));
at('usage-edit').addEventListener('click', () => edit(lookedAt));
at('usage-ban').addEventListener('click', () => ban(lookedAt));

if (sessionStorage.getItem(TOKEN)) signIn();
else signOut();
