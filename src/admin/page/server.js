// How the page asks the server. Text comes in by `textContent` only.
//
// These files are one script, in this order: server.js, poll.js, traffic.js, now.js, limits.js.
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
  if (error instanceof Refused) return error.message;
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

// Runs what a click asks for, and says what went wrong.
async function attempt(task) {
  at('error').hidden = true;
  try {
    await task();
  } catch (error) {
    fail(error);
  }
}

// The token.

function signOut(why = '') {
  sessionStorage.removeItem(TOKEN);
  stopAsking();
  at('main').hidden = true;
  at('sign-out').hidden = true;
  for (const dialog of document.querySelectorAll('dialog[open]')) dialog.close();
  at('token').value = '';
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
  // What no header can hold would be told as a server that cannot be reached.
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
