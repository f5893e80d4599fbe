// How the page asks the server. Text comes in by `textContent` only.
//
// These files are one script, in this order: server.js, traffic.js, limits.js.
'use strict';

const TOKEN = 'admission-token';
const BASE = new URL('.', document.currentScript.src);

const at = (id) => document.getElementById(id);

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

// What the server is asked.

class Refused extends Error {
  constructor(status, detail) {
    super(detail);
    this.status = status;
  }
}

async function ask(method, path, { body, signal } = {}) {
  const headers = { authorization: `Bearer ${sessionStorage.getItem(TOKEN) ?? ''}` };
  if (body !== undefined) headers['content-type'] = 'application/json';
  const response = await fetch(new URL(path, BASE), {
    method, headers, signal, body: body && JSON.stringify(body), cache: 'no-store',
  });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  throw new Refused(response.status, problem.detail ?? `The server answers ${response.status}.`);
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
  stopListening();
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
  listen();
  attempt(() => load());
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

// Events.

let listening = null;

function stopListening() {
  listening?.abort();
  listening = null;
  state('', 'Not connected');
}

function state(className, text) {
  if (at('state').textContent === text) return;
  at('state').className = className;
  at('state').textContent = text;
}

async function listen() {
  listening?.abort();
  const mine = new AbortController();
  listening = mine;
  state('', 'Connecting');
  while (!mine.signal.aborted) {
    try {
      const response = await ask('GET', 'events', { signal: mine.signal });
      await read(response.body);
      state('lost', 'Connection lost, connecting again');
    } catch (error) {
      if (mine.signal.aborted) return;
      if (error instanceof Refused && error.status === 401) return fail(error);
      state('lost', `${told(error)} Trying again`);
    }
    await new Promise((done) => setTimeout(done, 2000));
  }
}

// Server-sent events out of a body, as they come in.
async function read(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = '';
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    const events = text.split('\n\n');
    text = events.pop();
    for (const event of events) take(event);
  }
}

function take(event) {
  const fields = { event: 'message', data: '' };
  for (const line of event.split('\n')) {
    const colon = line.indexOf(':');
    if (colon > 0) fields[line.slice(0, colon)] = line.slice(colon + 1).trimStart();
  }
  if (fields.event === 'history') takeHistory(JSON.parse(fields.data));
  if (fields.event === 'second') takeSecond(JSON.parse(fields.data));
}
