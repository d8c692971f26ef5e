'use strict';

// What the page says. `{…}` is filled in.
const TEXTS = {
  en: {
    title: 'Files', root: 'Files', path: 'Path', uploads: 'Upload', content: 'Content of the file',
    newFile: 'New file', newFolder: 'New folder', upload: 'Upload', name: 'Name', size: 'Size',
    changed: 'Changed', actions: 'Actions', download: 'Download', rename: 'Rename', remove: 'Delete',
    save: 'Save', back: 'Back', cancel: 'Cancel', close: 'Close', create: 'Create', replace: 'Replace',
    discard: 'Discard',
    emptyTitle: 'This folder is empty', emptyHint: 'Make a file, or drop some here to upload them.',
    truncated: 'Only {count} entries are shown: this folder has more.',
    dropHere: 'Drop files to upload them here',
    renameItem: 'Rename “{name}”', removeItem: 'Delete “{name}”?', removeText: 'This cannot be undone.',
    removeFolder: 'The folder and everything in it is deleted. This cannot be undone.',
    replaceItem: '“{name}” exists already', replaceText: 'Replace it with the uploaded file?',
    unsavedItem: 'Discard your changes?', unsavedText: '“{name}” has changes that are not saved.',
    unsaved: 'Not saved', saving: 'Saving…', saved: 'Saved', loading: 'Loading…',
    conflict: 'Somebody else has changed this file since you opened it. Nothing was overwritten.',
    takeTheirs: 'Load their version', keepMine: 'Overwrite with mine',
    binary: 'This file is not text and cannot be edited here.',
    large: 'This file has more than 2 MB and cannot be edited here.',
    uploading: '{name} ({index} of {count})', uploaded: '{count} uploaded', cancelled: 'Upload cancelled',
    noFolders: 'Folders cannot be uploaded; “{name}” was left out.',
    badName: 'A name must not be empty and has no slash.',
    offline: 'The space does not answer. Is it still running?',
    folder: 'Folder', file: 'File', other: 'Cannot be opened', link: 'Link',
  },
  zh: {
    title: '文件', root: '文件', path: '路径', uploads: '上传', content: '文件内容',
    newFile: '新建文件', newFolder: '新建文件夹', upload: '上传', name: '名称', size: '大小',
    changed: '修改时间', actions: '操作', download: '下载', rename: '重命名', remove: '删除',
    save: '保存', back: '返回', cancel: '取消', close: '关闭', create: '创建', replace: '替换',
    discard: '放弃',
    emptyTitle: '此文件夹为空', emptyHint: '新建一个文件，或将文件拖到此处上传。',
    truncated: '仅显示 {count} 项，此文件夹中还有更多内容。',
    dropHere: '松开即可上传到此处',
    renameItem: '重命名“{name}”', removeItem: '删除“{name}”？', removeText: '此操作无法撤销。',
    removeFolder: '将删除该文件夹及其全部内容，此操作无法撤销。',
    replaceItem: '“{name}”已存在', replaceText: '用上传的文件替换它吗？',
    unsavedItem: '放弃修改？', unsavedText: '“{name}”有尚未保存的修改。',
    unsaved: '未保存', saving: '正在保存…', saved: '已保存', loading: '正在加载…',
    conflict: '打开此文件之后，它已被他人修改。没有覆盖任何内容。',
    takeTheirs: '加载对方的版本', keepMine: '用我的版本覆盖',
    binary: '此文件不是文本，无法在此编辑。',
    large: '此文件超过 2 MB，无法在此编辑。',
    uploading: '{name}（第 {index} 个，共 {count} 个）', uploaded: '已上传 {count} 个文件', cancelled: '已取消上传',
    noFolders: '不支持上传文件夹，已跳过“{name}”。',
    badName: '名称不能为空，也不能包含斜杠。',
    offline: '空间没有响应，它还在运行吗？',
    folder: '文件夹', file: '文件', other: '无法打开', link: '链接',
    // The server speaks English; these stand in for it, by status.
    400: '请求无效。', 403: '没有权限，或路径超出了空间的文件夹。', 404: '文件或文件夹不存在。',
    409: '与已有内容冲突：同名项已存在，或文件夹不为空。', 413: '文件过大。',
    500: '服务器出错。', 507: '磁盘已满。',
  },
};

const LANGUAGE = (navigator.languages || [navigator.language])
  .map((language) => language.toLowerCase().split('-')[0])
  .find((language) => language in TEXTS) || 'en';

function t(key, values = {}) {
  const text = TEXTS[LANGUAGE][key] ?? TEXTS.en[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? values[name] : whole));
}

document.documentElement.lang = LANGUAGE;
document.title = t('title');
for (const element of document.querySelectorAll('[data-text]')) element.textContent = t(element.dataset.text);
for (const element of document.querySelectorAll('[data-label]')) element.setAttribute('aria-label', t(element.dataset.label));
