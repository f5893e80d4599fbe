// How the page asks the server. Text is shown by `textContent` only.
//
// These files are one script, in this order: server.js, poll.js, traffic.js, now.js, limits.js, changes.js.
'use strict';

const TOKEN = 'admission-token';
const BASE = new URL('.', document.currentScript.src);

const at = (id) => document.getElementById(id);

// With separators: 1234567 is hard to read at three in the morning.
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

// Replaces the rows of a list, and leaves the focus on the button that had it.
function replaceRows(list, rows) {
  const label = list.contains(document.activeElement) && document.activeElement.getAttribute('aria-label');
  list.replaceChildren(...rows);
  if (label) [...list.querySelectorAll('button')].find((one) => one.getAttribute('aria-label') === label)?.focus();
}

// What the server is asked.

class Refused extends Error {
  constructor(status, problem, tag) {
    super(problem.detail ?? `The server answers ${status}.`);
    this.status = status;
    this.problem = problem;
    this.tag = tag;
  }
}

// An error with a text for the operator.
class Told extends Error {}

async function ask(method, path, { body, signal, headers: more } = {}) {
  const headers = { authorization: `Bearer ${sessionStorage.getItem(TOKEN) ?? ''}`, ...more };
  if (body !== undefined) headers['content-type'] = 'application/json';
  const response = await fetch(new URL(path, BASE), {
    method, headers, signal, body: body && JSON.stringify(body), cache: 'no-store',
  });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Refused(response.status, problem, response.headers.get('etag'));
}

const json = async (method, path, options) => (await ask(method, path, options)).json();
const of = (folder, key) => `${folder}/${encodeURIComponent(key)}`;

function told(error) {
  if (error instanceof Refused || error instanceof Told) return error.message;
  return 'The server cannot be reached.';
}

function fail(error) {
  if (error instanceof Refused && error.status === 401) {
    signOut('This token is not accepted.');
    return;
  }
  at('error').textContent = told(error);
  at('error').hidden = false;
}

// Runs what a click asks for, and shows its error.
async function attempt(task) {
  at('error').hidden = true;
  try {
    await task();
  } catch (error) {
    fail(error);
  }
}

// Reads the lists again. It runs also without a click, so it leaves the error of the last click where it is.
let areListsOld = false;
async function refresh() {
  const results = await Promise.allSettled([load(), loadChanges()]);
  const failed = results.find(({ status }) => status === 'rejected');
  areListsOld = Boolean(failed);
  if (failed?.reason.status === 401) return fail(failed.reason);
  at('lists').hidden = !failed;
  if (failed) at('lists').textContent = `The lists of limits and changes may be old. ${told(failed.reason)} Trying again.`;
  return undefined;
}

// The token.

function signOut(why = '') {
  sessionStorage.removeItem(TOKEN);
  stopAsking();
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
  startAsking();
}

at('sign-out').addEventListener('click', () => signOut());
at('token-dialog').addEventListener('cancel', (event) => event.preventDefault());
at('token-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const token = at('token').value.trim();
  // For a token that no header can hold, the error would be that of a server that cannot be reached.
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
