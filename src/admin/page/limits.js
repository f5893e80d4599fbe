// Limits of single keys, and the usage of one.

const PAGE = 1000;
// Rows that are shown of those that are loaded; the search finds the others.
const ROWS = 500;

let limits = [];
let names = [];
let next = null;

async function load(after) {
  const query = new URLSearchParams({ count: PAGE });
  if (after) query.set('after', after);
  const page = await json('GET', `limits?${query}`);
  // One that was added here may be on this page as well.
  const added = new Set(page.limits.map(({ key }) => key));
  limits = after ? limits.filter(({ key }) => !added.has(key)).concat(page.limits) : page.limits;
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
    at('usage').replaceChildren(...usage.map((used) => {
      const name = used.name || '(no name)';
      const sort = used.is_own ? `${used.sort}, its own` : used.sort;
      return bar(used.tier ? `${name} (${used.tier})` : name, sort, used.used, used.limit);
    }));
    at('usage-title').scrollIntoView({ block: 'nearest' });
  });
}

if (sessionStorage.getItem(TOKEN)) signIn();
else signOut();
