'use strict';

// The page. Its address after the # says what is shown: `#/folder/` or
// `#/folder/file`. Every request is relative to where the page itself is.

const $ = (id) => document.getElementById(id);
const api = (call, query) => `api/${call}?${new URLSearchParams(query)}`;

let folder = '';       // the folder that is shown, or the one of the open file
let open = null;       // the open file: { path, etag, text } and `text` as it was read
let shown = '';        // the address that is shown, to go back to

// ---- requests

class Failure extends Error {
  constructor(status, message) {
    super(LANGUAGE !== 'en' && TEXTS[LANGUAGE][status] || message || t('offline'));
    this.status = status;
  }
}

async function request(method, address, { json, body, headers } = {}) {
  let answer;
  try {
    answer = await fetch(address, {
      method,
      headers: { 'X-Podyard-Files': '1', ...(json && { 'Content-Type': 'application/json' }), ...headers },
      body: json ? JSON.stringify(json) : body,
    });
  } catch {
    throw new Failure(0);
  }
  const isJson = (answer.headers.get('Content-Type') || '').startsWith('application/json');
  const content = isJson ? await answer.json() : null;
  if (!answer.ok) throw new Failure(answer.status, content?.error);
  // Something else than this program answers, such as a login page.
  if (!isJson && answer.status !== 204) throw new Failure(0);
  return content;
}

// ---- messages

function showError(message) {
  $('error').hidden = !message;
  $('error').firstElementChild.textContent = message || '';
}

const say = (message) => { $('status').textContent = message; };

async function attempt(work) {
  showError('');
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof Failure)) console.error(error);
    showError(error.message);
    return undefined;
  }
}

// Asks in the dialog: for a text if `value` is given. `act` does it, and its
// error is shown there, so that one can try another name. One after another:
// an upload may ask while a name is being typed.
let asked = Promise.resolve();
function ask(question) {
  asked = asked.then(() => askNow(question));
  return asked;
}

function askNow({ title, text = '', value, ok, act }) {
  const dialog = $('dialog'), input = $('dialog-input'), problem = $('dialog-error');
  $('dialog-title').textContent = title;
  $('dialog-text').textContent = text;
  $('dialog-text').hidden = !text;
  $('dialog-ok').textContent = ok;
  input.hidden = value === undefined;
  input.value = value ?? '';
  problem.hidden = true;
  return new Promise((resolve) => {
    let over = false;
    const done = (answer) => {
      if (over) return;
      over = true;
      dialog.onclose = null;
      dialog.close();
      resolve(answer);
    };
    dialog.onclose = () => { over = true; resolve(false); };
    $('dialog-cancel').onclick = () => done(false);
    dialog.firstElementChild.onsubmit = async (event) => {
      event.preventDefault();
      if (value !== undefined && (!input.value.trim() || input.value.includes('/'))) {
        problem.textContent = t('badName');
        problem.hidden = false;
        return;
      }
      $('dialog-ok').disabled = true;
      try {
        if (act) await act(input.value);
        done(true);
      } catch (error) {
        if (over) return;
        problem.textContent = error.message;
        problem.hidden = false;
      } finally {
        if (!over) $('dialog-ok').disabled = false;
      }
    };
    $('dialog-ok').disabled = false;
    dialog.showModal();
    if (value !== undefined) {
      input.focus();
      const dot = value.lastIndexOf('.');
      input.setSelectionRange(0, dot > 0 ? dot : value.length);
    }
  });
}

// ---- addresses

const join = (parent, name) => (parent ? `${parent}/${name}` : name);
const address = (path, isFolder) =>
  `#/${path.split('/').filter(Boolean).map(encodeURIComponent).join('/')}${isFolder && path ? '/' : ''}`;

function readAddress() {
  const text = location.hash.replace(/^#\/?/, '');
  let path = '';
  try {
    path = text.split('/').filter(Boolean).map(decodeURIComponent).join('/');
  } catch {
    // Not an address that this page made: show the top.
    return { path: '', isFolder: true };
  }
  return { path, isFolder: !text || text.endsWith('/') };
}

async function follow() {
  if (location.hash === shown) return;
  const wanted = location.hash;
  if (isChanged()) {
    history.replaceState(null, '', shown || '#/');
    if (!await mayLeave()) return;
    history.replaceState(null, '', wanted);
  }
  shown = wanted;
  open = null;
  const { path, isFolder } = readAddress();
  if (isFolder) await showFolder(path);
  else await showFile(path);
}

const go = (to) => { if (location.hash === to) { shown = ''; follow(); } else location.hash = to; };

function showCrumbs(path, isFolder) {
  const names = path.split('/').filter(Boolean);
  const crumbs = [[t('root'), address('', true)]];
  names.forEach((name, index) => {
    const last = index === names.length - 1;
    crumbs.push([name, address(names.slice(0, index + 1).join('/'), !last || isFolder)]);
  });
  $('crumbs').replaceChildren(...crumbs.flatMap(([name, href], index) => {
    const link = element('a', { href, textContent: name });
    if (index === crumbs.length - 1) link.setAttribute('aria-current', 'page');
    return index ? [element('span', { textContent: '/', ariaHidden: 'true' }), link] : [link];
  }));
}

// ---- a folder

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function size(bytes) {
  const units = ['B', 'KB', 'MB', 'GB', 'TB'];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) { bytes /= 1024; unit += 1; }
  return `${unit && bytes < 10 ? bytes.toFixed(1) : Math.round(bytes)} ${units[unit]}`;
}

const time = new Intl.DateTimeFormat(LANGUAGE, { dateStyle: 'medium', timeStyle: 'short' });

async function showFolder(path) {
  folder = path;
  $('editor').hidden = true;
  $('browser').hidden = false;
  $('folder-tools').hidden = false;
  document.title = path ? `${path} · ${t('title')}` : t('title');
  showCrumbs(path, true);
  await refresh();
}

async function refresh() {
  const path = folder;
  const list = await attempt(() => request('GET', api('list', { path })));
  if (path !== folder || $('browser').hidden) return;
  const entries = list?.entries ?? [];
  $('list').tBodies[0].replaceChildren(...entries.map(row));
  $('list').hidden = !entries.length;
  $('empty').hidden = !list || entries.length > 0;
  $('notice').hidden = !list?.truncated;
  $('notice').textContent = list?.truncated ? t('truncated', { count: list.limit }) : '';
}

function row(entry) {
  const path = join(folder, entry.name);
  const icon = element('span', {
    className: 'icon', textContent: { folder: '📁', file: '📄', other: '🔗' }[entry.type], ariaHidden: 'true',
  });
  const kind = element('span', { className: 'hidden-text', textContent: ` (${t(entry.link ? 'link' : entry.type)})` });
  const name = entry.type === 'other'
    ? element('span', { textContent: entry.name, title: t('other') })
    : element('a', { href: address(path, entry.type === 'folder'), textContent: entry.name });
  const tools = element('td', { className: 'row-tools' });
  const tool = (text, onclick) => {
    const made = element('button', { type: 'button', textContent: t(text), onclick });
    made.setAttribute('aria-label', `${t(text)}: ${entry.name}`);
    return made;
  };
  if (entry.type === 'file') {
    const link = element('a', { className: 'button', href: api('download', { path }), download: entry.name, textContent: t('download') });
    link.setAttribute('aria-label', `${t('download')}: ${entry.name}`);
    tools.append(link, ' ');
  }
  tools.append(tool('rename', () => rename(entry)), ' ', tool('remove', () => remove(entry)));
  return element('tr', {},
    element('td', {}, icon, name, kind),
    element('td', { className: 'size', textContent: entry.type === 'file' ? size(entry.size) : '' }),
    element('td', { className: 'time', textContent: time.format(entry.mtime) }),
    tools);
}

async function rename(entry) {
  const done = await ask({
    title: t('renameItem', { name: entry.name }), value: entry.name, ok: t('rename'),
    act: (name) => name === entry.name || request('POST', 'api/move', {
      json: { from: join(folder, entry.name), to: join(folder, name) },
    }),
  });
  if (done) await refresh();
}

async function remove(entry) {
  const isFolder = entry.type === 'folder' && !entry.link;
  const done = await ask({
    title: t('removeItem', { name: entry.name }), text: t(isFolder ? 'removeFolder' : 'removeText'), ok: t('remove'),
    act: () => request('DELETE', api('entry', { path: join(folder, entry.name), recursive: isFolder })),
  });
  if (done) await refresh();
}

$('new-folder').onclick = async () => {
  const done = await ask({
    title: t('newFolder'), value: '', ok: t('create'),
    act: (name) => request('POST', 'api/folder', { json: { path: join(folder, name) } }),
  });
  if (done) await refresh();
};

$('new-file').onclick = async () => {
  let path = '';
  const done = await ask({
    title: t('newFile'), value: '', ok: t('create'),
    act: (name) => {
      path = join(folder, name);
      return request('PUT', api('file', { path }), { body: '', headers: { 'If-None-Match': '*' } });
    },
  });
  if (done) go(address(path, false));
};

// ---- uploads

let queue = [];
let sending = null;

function send(file, path, replace, onProgress) {
  return new Promise((resolve, reject) => {
    // fetch cannot tell how far an upload is.
    const sender = new XMLHttpRequest();
    sending = sender;
    sender.open('PUT', api('upload', { path, replace }));
    sender.setRequestHeader('X-Podyard-Files', '1');
    sender.upload.onprogress = (event) => onProgress(event.loaded, event.total);
    sender.onload = () => {
      if (sender.status === 201) return resolve(true);
      let message;
      try { message = JSON.parse(sender.responseText).error; } catch { /* not ours */ }
      return reject(new Failure(sender.status, message));
    };
    sender.onerror = () => reject(new Failure(0));
    sender.onabort = () => reject(new Failure(-1, t('cancelled')));
    sender.send(file);
  });
}

async function upload(files) {
  queue.push(...[...files].map((file) => ({ file, into: folder })));
  if (sending || !queue.length) return;
  showError('');
  $('transfer').hidden = false;
  let count = 0;
  const problems = [];
  for (let index = 1; queue.length; index += 1) {
    const { file, into } = queue.shift();
    const path = join(into, file.name);
    $('transfer-name').textContent = t('uploading', { name: file.name, index, count: index + queue.length });
    const progress = (loaded, total) => { $('transfer-bar').value = total ? loaded / total : 0; };
    progress(0, 1);
    try {
      const sent = await send(file, path, false, progress).catch((error) => {
        if (error.status !== 409) throw error;
        const act = () => send(file, path, true, progress);
        return ask({ title: t('replaceItem', { name: file.name }), text: t('replaceText'), ok: t('replace'), act });
      });
      if (sent) count += 1;
    } catch (error) {
      problems.push(error.status === -1 ? error.message : `${file.name}: ${error.message}`);
      if (error.status === -1) queue = [];
    }
  }
  sending = null;
  $('transfer').hidden = true;
  say(t('uploaded', { count }));
  if (!$('browser').hidden) await refresh();
  if (problems.length) showError(problems.join(' · '));
}

$('upload').onclick = () => $('picker').click();
$('picker').onchange = async () => {
  const files = [...$('picker').files];
  $('picker').value = '';
  await upload(files);
};
$('transfer-cancel').onclick = () => { queue = []; sending?.abort(); };

let dragging = 0;
const isFiles = (event) => !$('browser').hidden && [...event.dataTransfer.types].includes('Files');
addEventListener('dragenter', (event) => { if (isFiles(event)) { dragging += 1; $('drop').hidden = false; } });
addEventListener('dragleave', (event) => { if (isFiles(event) && --dragging <= 0) { dragging = 0; $('drop').hidden = true; } });
addEventListener('dragover', (event) => { if (isFiles(event)) event.preventDefault(); });
addEventListener('drop', async (event) => {
  dragging = 0;
  $('drop').hidden = true;
  if (!isFiles(event)) return;
  event.preventDefault();
  const items = [...event.dataTransfer.items].filter((item) => item.kind === 'file');
  const left = items.filter((item) => item.webkitGetAsEntry?.()?.isDirectory).map((item) => item.getAsFile()?.name);
  const files = items.filter((item) => !item.webkitGetAsEntry?.()?.isDirectory).map((item) => item.getAsFile());
  await upload(files.filter(Boolean));
  if (left.length) showError(t('noFolders', { name: left.join(', ') }));
});

// ---- a file

const isChanged = () => open?.kind === 'text' && $('text').value !== open.text;

function showState() {
  $('editor-state').textContent = isChanged() ? t('unsaved') : '';
  $('save').disabled = !isChanged();
}

const mayLeave = () => ask({
  title: t('unsavedItem'), text: t('unsavedText', { name: open.path.split('/').pop() }), ok: t('discard'),
});

async function showFile(path) {
  folder = path.split('/').slice(0, -1).join('/');
  const name = path.split('/').pop();
  $('browser').hidden = true;
  $('folder-tools').hidden = true;
  $('editor').hidden = false;
  for (const id of ['text', 'no-edit', 'conflict', 'save', 'editor-download']) $(id).hidden = true;
  $('editor-name').textContent = name;
  $('editor-state').textContent = t('loading');
  document.title = `${name} · ${t('title')}`;
  showCrumbs(path, false);
  for (const id of ['editor-download', 'no-edit-download']) {
    $(id).href = api('download', { path });
    $(id).download = name;
  }
  await load(path);
}

async function load(path) {
  const file = await attempt(() => request('GET', api('file', { path })));
  if (readAddress().path !== path) return;
  $('editor-state').textContent = '';
  if (!file) return;
  $('conflict').hidden = true;
  open = file;
  const isText = file.kind === 'text';
  $('text').hidden = !isText;
  $('save').hidden = !isText;
  $('editor-download').hidden = !isText;
  $('no-edit').hidden = isText;
  if (isText) {
    // A text area has its own line ends; the file's are put back at a save.
    open.newline = file.text.includes('\r\n') ? '\r\n' : '\n';
    $('text').value = file.text;
    open.text = $('text').value;
    $('text').setSelectionRange(0, 0);
    $('text').focus();
    showState();
  } else {
    $('no-edit-why').textContent = t(file.kind);
  }
}

async function save() {
  if (!isChanged() || open.busy) return;
  const file = open, text = $('text').value;
  file.busy = true;
  $('editor-state').textContent = t('saving');
  try {
    showError('');
    const answer = await request('PUT', api('file', { path: file.path }), {
      body: text.replaceAll('\n', file.newline),
      headers: { 'If-Match': file.etag, 'Content-Type': 'text/plain; charset=utf-8' },
    });
    file.etag = answer.etag;
    file.text = text;
    $('conflict').hidden = true;
    showState();
    if (!isChanged()) $('editor-state').textContent = t('saved');
  } catch (error) {
    showState();
    if (error.status === 412) $('conflict').hidden = false;
    else showError(error.message);
  } finally {
    file.busy = false;
  }
}

$('text').oninput = showState;
$('save').onclick = save;
$('back').onclick = () => go(address(folder, true));
$('take-theirs').onclick = () => load(open.path);
$('keep-mine').onclick = async () => {
  const now = await attempt(() => request('GET', api('file', { path: open.path })).catch((error) => {
    // It is gone. The save makes it anew.
    if (error.status === 404) return null;
    throw error;
  }));
  if (now === undefined) return;
  if (now) {
    open.etag = now.etag;
    await save();
    return;
  }
  await attempt(async () => {
    const text = $('text').value;
    const answer = await request('PUT', api('file', { path: open.path }), {
      body: text.replaceAll('\n', open.newline), headers: { 'If-None-Match': '*' },
    });
    Object.assign(open, { etag: answer.etag, text });
    $('conflict').hidden = true;
    showState();
  });
};

addEventListener('keydown', (event) => {
  if ((event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase() === 's') {
    event.preventDefault();
    save();
  }
});
addEventListener('beforeunload', (event) => { if (isChanged() || sending) event.preventDefault(); });
addEventListener('hashchange', follow);
$('error').lastElementChild.onclick = () => showError('');

if (!location.hash) history.replaceState(null, '', '#/');
follow();
