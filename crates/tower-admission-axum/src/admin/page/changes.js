// The last changes of limits, and how one is undone.

const CHANGES = 50;

let changeLoads = 0;
let undoing = null;

async function loadChanges() {
  changeLoads += 1;
  const mine = changeLoads;
  const { changes } = await json('GET', `changes?count=${CHANGES}`);
  if (mine === changeLoads) showChanges(changes);
}

const limitCell = (noted, none) => make('td', 'limit', noted?.limit ?? none, make('span', 'type', noted ? notes(noted) : ''));

// Only the last change of a key is undone: an older one would take later ones with it.
function canUndo(change, last) {
  const { key, before, has_ended: hasEnded } = change;
  const isOver = before?.end && before.end * 1000 <= Date.now();
  // A newer version has written what this one cannot read, and cannot restore.
  return key !== null && change === last && !hasEnded && !isOver && !change.is_unreadable;
}

function showChanges(changes) {
  const last = new Map(changes.toReversed().map((change) => [change.key, change]));
  const rows = changes.map((change) => {
    const { key, before, after, author, origin, has_ended: hasEnded } = change;
    const none = change.is_unreadable ? 'none that can be read' : '–';
    const by = hasEnded ? 'its end' : author ?? 'not known';
    const undo = button('Undo…', `Undo the change of ${key}`, () => confirmUndo(change));
    // Without a key an operator has accepted a loss.
    const what = key === null ? make('td', '', 'A loss was accepted') : make('td', 'key', key);
    return make('tr', '', make('td', 'time', time(change.at)), what, limitCell(bare(before), none),
      limitCell(bare(after), none),
      make('td', '', by, make('span', 'type', origin ?? '')),
      make('td', 'actions', ...(canUndo(change, last.get(key)) ? [undo] : [])));
  });
  replaceRows(at('changes'), rows);
  at('no-changes').hidden = rows.length > 0;
}

// Without its author and time, which the row has.
const bare = (noted) => noted && { limit: noted.limit, end: noted.end ?? undefined, note: noted.note ?? undefined };

// Whether two limits are the same, with their ends and notes; `null` is none.
const isSame = (one, other) => JSON.stringify(bare(one)) === JSON.stringify(bare(other));

const confirmUndo = (change) => attempt(async () => {
  const { key, before, after } = change;
  const now = await current(key);
  if (!isSame(now.source === 'override' ? now : null, after)) {
    await refresh();
    throw new Told(`${key} was changed again meanwhile, so this change is not its last.`);
  }
  undoing = { key, before, tag: now.tag };
  at('undo-key').textContent = key;
  at('undo-after').textContent = after?.limit ?? 'no limit of its own';
  at('undo-before').textContent = before ? before.limit : 'no limit of its own';
  at('undo-notes').textContent = before ? notes(bare(before)) : '';
  at('undo-below').textContent = before ? '' : below(now);
  at('undo-wrong').textContent = '';
  at('undo-dialog').showModal();
});

onSubmit('undo', async () => {
  const { key, before, tag } = undoing;
  try {
    if (before) await ask('PUT', of('limits', key), { body: bare(before), headers: only(tag) });
    else await ask('DELETE', of('limits', key), { headers: only(tag) });
  } catch (error) {
    if (error.status !== 412) throw error;
    throw new Told('It was changed again meanwhile, so nothing was undone. Close this to see its last change.');
  }
});

if (sessionStorage.getItem(TOKEN)) signIn();
else signOut();
