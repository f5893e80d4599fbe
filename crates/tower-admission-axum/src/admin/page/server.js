// Requests to the server, and errors. The page shows text by `textContent` only.
//
// These files are one script, in this order: server.js, poll.js, traffic.js, now.js, limits.js, changes.js.
'use strict';

const TOKEN = 'admission-token';
const BASE = new URL('.', document.currentScript.src);

const at = (id) => document.getElementById(id);

// With separators: 1234567 is hard to read in a hurry.
const number = new Intl.NumberFormat('en').format;

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

// Replaces the rows of a list, and keeps the focus on its button.
function replaceRows(list, rows) {
  const label = list.contains(document.activeElement) && document.activeElement.getAttribute('aria-label');
  list.replaceChildren(...rows);
  if (label) [...list.querySelectorAll('button')].find((one) => one.getAttribute('aria-label') === label)?.focus();
}

// Requests.

class ErrorResponse extends Error {
  constructor(status, problem, tag) {
    super(problem.detail ?? `The server answers ${status}.`);
    this.status = status;
    this.problem = problem;
    this.tag = tag;
  }
}

// An error whose message is for the operator.
class OperatorError extends Error {}

async function ask(method, path, { body, signal, headers: more } = {}) {
  const headers = { authorization: `Bearer ${sessionStorage.getItem(TOKEN) ?? ''}`, ...more };
  if (body !== undefined) headers['content-type'] = 'application/json';
  const response = await fetch(new URL(path, BASE), {
    method, headers, signal, body: body && JSON.stringify(body), cache: 'no-store',
  });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new ErrorResponse(response.status, problem, response.headers.get('etag'));
}

const json = async (method, path, options) => (await ask(method, path, options)).json();
const pathOf = (folder, key) => `${folder}/${encodeURIComponent(key)}`;

function messageOf(error) {
  if (error instanceof ErrorResponse || error instanceof OperatorError) return error.message;
  return 'The server cannot be reached.';
}

function fail(error) {
  if (error instanceof ErrorResponse && error.status === 401) {
    signOut('This token is not accepted.');
    return;
  }
  at('error').textContent = messageOf(error);
  at('error').hidden = false;
}

// Runs the task of a click, and shows its error.
async function attempt(task) {
  at('error').hidden = true;
  try {
    await task();
  } catch (error) {
    fail(error);
  }
}

// Reads the lists again. It also runs without a click, so it keeps the error of the last click.
let areListsStale = false;
async function refresh() {
  const results = await Promise.allSettled([load(), loadChanges()]);
  const failed = results.find(({ status }) => status === 'rejected');
  areListsStale = Boolean(failed);
  if (failed?.reason.status === 401) return fail(failed.reason);
  at('lists').hidden = !failed;
  if (failed) at('lists').textContent = `The lists of overrides and changes may be old. ${messageOf(failed.reason)} Trying again.`;
  return undefined;
}

// The token.

function signOut(why = '') {
  sessionStorage.removeItem(TOKEN);
  stopPolling();
  at('main').hidden = true;
  at('sign-out').hidden = true;
  // The next person at this screen is not signed in.
  for (const rows of document.querySelectorAll('main tbody')) rows.replaceChildren();
  for (const id of ['error', 'lists']) at(id).hidden = true;
  for (const dialog of document.querySelectorAll('dialog[open]')) dialog.close();
  at('token').value = '';
  at('search').value = '';
  at('token-wrong').textContent = why;
  at('token-dialog').showModal();
}

function signIn() {
  at('main').hidden = false;
  at('sign-out').hidden = false;
  startPolling();
}

at('sign-out').addEventListener('click', () => signOut());
at('token-dialog').addEventListener('cancel', (event) => event.preventDefault());
at('token-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const token = at('token').value.trim();
  // For a token that no header can hold, `fetch` reports the same error as for an unreachable server.
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
