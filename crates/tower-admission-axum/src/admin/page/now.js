// Requests in flight, and the most rejected keys.

function bar(name, details, used, limit, note = '') {
  const share = limit === null ? 0 : used >= limit ? 1 : used / limit;
  const level = share >= 0.9 ? 'red' : share >= 0.7 ? 'amber' : '';
  const fill = make('div', 'fill');
  fill.style.width = `${share * 100}%`;
  const track = make('div', 'track', fill);
  track.setAttribute('aria-hidden', 'true');
  const row = make('li', level, make('span', 'key', name, make('span', 'type', details)),
    make('span', 'of', limit === null ? number(used) : `${number(used)} of ${number(limit)}`), track);
  if (note) row.append(make('span', 'note', note));
  return row;
}

// All replicas report the same count of the store. A count of a process has a row for each process.
function showInFlight() {
  const answering = answeringReplicas();
  const newest = answering.toSorted((one, two) => two.at - one.at);
  const rows = new Map();
  for (const replica of newest) {
    for (const entry of replica.now.in_flight) {
      const isShared = entry.counted_in === 'store';
      const id = JSON.stringify([entry.name, entry.sort, isShared ? '' : nameOf(replica)]);
      if (!rows.has(id)) rows.set(id, { ...entry, isShared, held: [] });
      if (entry.here !== null) rows.get(id).held.push([nameOf(replica), entry.here]);
    }
  }
  const sorted = [...rows.values()].sort((one, two) => one.name.localeCompare(two.name) || one.sort.localeCompare(two.sort)
    || (one.held[0]?.[0] ?? '').localeCompare(two.held[0]?.[0] ?? ''));
  const bars = sorted.map(({ name, sort, used, limit, isShared, held }) => {
    held.sort();
    const here = held.map(([who, count]) => `${number(count)} in ${who}`).join(', ');
    const note = isShared ? `in the store: ${here || 'none in the answering processes'}` : `in this process: ${held[0]?.[0] ?? ''}`;
    return bar(name || '(no name)', sort, used, limit, note);
  });
  at('in-flight').replaceChildren(...bars);
  at('no-in-flight').hidden = bars.length > 0;
}

const MAX_REJECTED_KEYS = 10;
let shownRejectedKeys = '';

function showRejectedKeys() {
  const all = new Map();
  for (const { now } of answeringReplicas()) {
    for (const { count, ...rejectedKey } of now.rejected_keys) {
      const id = JSON.stringify(rejectedKey);
      const entry = all.get(id) ?? { ...rejectedKey, count: 0 };
      entry.count += count;
      all.set(id, entry);
    }
  }
  const rows = [...all.entries()].map(([id, entry]) => ({ id, ...entry }))
    .sort((one, two) => two.count - one.count || one.id.localeCompare(two.id)).slice(0, MAX_REJECTED_KEYS);
  const body = at('rejected-keys');
  const ids = rows.map(({ id }) => id).join('\n');
  // Unchanged rows are kept, so that a click does not miss its button.
  if (ids !== shownRejectedKeys) {
    shownRejectedKeys = ids;
    replaceRows(body, rows.map(({ key, name, limit_type: type, policy }) => {
      const by = policy && policy !== name ? `${name || '(no name)'}: ${policy}` : name || '(no name)';
      const which = `${key}, rejected by ${by}`;
      return make('tr', '', make('td', 'key', key), make('td', '', by, make('span', 'type', type)), make('td', 'number'),
        make('td', 'actions',
          button('Usage', `Usage of ${which}`, () => showUsage(key)),
          button('Limit…', `Limit ${which}`, () => edit(key)),
          button('Ban…', `Ban ${which}`, () => ban(key))));
    }));
  }
  rows.forEach(({ count }, n) => { body.rows[n].cells[2].textContent = number(count); });
  at('no-rejected-keys').hidden = rows.length > 0;
}
