// The last changes of overrides, and their undo.

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

// Only the last change of a key can be undone: the undo of an older one would undo later ones too.
function canUndo(change, last) {
  const { key, before, has_ended: hasEnded } = change;
  const isOver = before?.end && before.end * 1000 <= Date.now();
  // A newer version of the service wrote an override that this version cannot read or restore.
  return key !== null && change === last && !hasEnded && !isOver && !change.is_unreadable;
}

function showChanges(changes) {
  const last = new Map(changes.toReversed().map((change) => [change.key, change]));
  const rows = changes.map((change) => {
    const { key, before, after, author, origin, has_ended: hasEnded } = change;
    const none = change.is_unreadable ? 'unreadable' : '–';
    const by = hasEnded ? 'expired' : author ?? 'unknown';
    const undo = button('Undo…', `Undo the change of ${key}`, () => confirmUndo(change));
    // A change without a key is the acceptance of lost overrides.
    const what = key === null ? make('td', '', 'Lost overrides accepted') : make('td', 'key', key);
    return make('tr', '', make('td', 'time', time(change.at)), what, limitCell(withoutAuthor(before), none),
      limitCell(withoutAuthor(after), none),
      make('td', '', by, make('span', 'type', origin ?? '')),
      make('td', 'actions', ...(canUndo(change, last.get(key)) ? [undo] : [])));
  });
  replaceRows(at('changes'), rows);
  at('no-changes').hidden = rows.length > 0;
}

// Without author and time, which the row shows.
const withoutAuthor = (noted) => noted && { limit: noted.limit, end: noted.end ?? undefined, note: noted.note ?? undefined };

// Whether two overrides have the same limit, end and note; `null` is no override.
const isSame = (one, other) => JSON.stringify(withoutAuthor(one)) === JSON.stringify(withoutAuthor(other));

const confirmUndo = (change) => attempt(async () => {
  const { key, before, after } = change;
  const now = await current(key);
  if (!isSame(now.source === 'override' ? now : null, after)) {
    await refresh();
    throw new OperatorError(`${key} was changed again, so this change is not its last.`);
  }
  undoing = { key, before, tag: now.tag };
  at('undo-key').textContent = key;
  at('undo-after').textContent = after?.limit ?? 'no override';
  at('undo-before').textContent = before ? before.limit : 'no override';
  at('undo-notes').textContent = before ? notes(withoutAuthor(before)) : '';
  at('undo-fallback').textContent = before ? '' : fallback(now);
  at('undo-wrong').textContent = '';
  at('undo-dialog').showModal();
});

onSubmit('undo', async () => {
  const { key, before, tag } = undoing;
  try {
    if (before) await ask('PUT', pathOf('limits', key), { body: withoutAuthor(before), headers: precondition(tag) });
    else await ask('DELETE', pathOf('limits', key), { headers: precondition(tag) });
  } catch (error) {
    if (error.status !== 412) throw error;
    throw new OperatorError('The override was changed again, so nothing was undone. Close this dialog to see the last change.');
  }
});

if (sessionStorage.getItem(TOKEN)) signIn();
else signOut();
