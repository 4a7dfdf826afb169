// What the user gives us → a flat list of files: drops, pickers, paste. Browser I/O, no network.

const SKIPPED = new Set([
  '.git', '.hg', '.svn', 'node_modules', '__pycache__', '.venv', 'venv', '.tox', '.mypy_cache',
  '.pytest_cache', '.ruff_cache', '.idea', '.DS_Store', 'Thumbs.db', '.ipynb_checkpoints',
])
const SECRETS = [
  /^\.env(\..+)?$/, /^id_(rsa|dsa|ecdsa|ed25519)$/, /\.(pem|key|p12|pfx|keystore|jks)$/i,
  /^\.?(netrc|npmrc|pypirc|htpasswd|pgpass)$/, /^credentials(\.json)?$/i, /^service[-_]account.*\.json$/i,
]
const HARMLESS = /^\.env\.(example|sample|template|dist)$/

/** The path's part because of which it is left out, or null. */
const skippedBy = (path) => path.split('/').find((part) => SKIPPED.has(part)) ?? null

export function looksSecret(path) {
  const name = path.slice(path.lastIndexOf('/') + 1)
  return !HARMLESS.test(name) && SECRETS.some((pattern) => pattern.test(name))
}

function readAll(directory) {
  // readEntries hands out at most 100 entries a call; an empty answer is the end.
  const reader = directory.createReader()
  const found = []
  return new Promise((resolve, reject) => {
    const next = () => reader.readEntries((entries) => {
      if (!entries.length) return resolve(found)
      found.push(...entries)
      next()
    }, reject)
    next()
  })
}

async function walk(entry, prefix, found, onProgress) {
  const path = prefix + entry.name
  if (entry.isFile) {
    const blob = await new Promise((resolve, reject) => entry.file(resolve, reject))
    found.push({ path, blob })
    onProgress(found.length)
    return
  }
  // Not read at all: node_modules alone can hold 50,000 files.
  if (SKIPPED.has(entry.name)) {
    found.push({ path, skippedEntry: entry, prefix })
    return
  }
  const children = await readAll(entry)
  if (!children.length) found.push({ path, blob: null })
  await together(children, (child) => walk(child, `${path}/`, found, onProgress))
}

/** Some at a time: each file is a message to another process and back. */
async function together(entries, task) {
  for (let i = 0; i < entries.length; i += 64) await Promise.all(entries.slice(i, i + 64).map(task))
}

/** Must be called while the event is handled: a DataTransfer is empty afterwards. */
export function takeDrop(dataTransfer) {
  const entries = [...dataTransfer.items]
    .filter((item) => item.kind === 'file')
    .map((item) => item.webkitGetAsEntry?.() ?? item.getAsFile())
    .filter(Boolean)
  const text = entries.length ? '' : dataTransfer.getData('text/plain')
  return { entries, text, hasDirectory: entries.some((entry) => entry.isDirectory) }
}

export async function readDrop(entries, onProgress = () => {}) {
  const found = []
  for (const entry of entries) {
    if (entry instanceof File) found.push({ path: entry.name, blob: entry })
    else await walk(entry, '', found, onProgress)
  }
  return arrange(found)
}

export async function readSkipped(skipped) {
  const found = []
  const children = await readAll(skipped.skippedEntry)
  if (!children.length) found.push({ path: skipped.path, blob: null })
  const everything = async (entry, prefix) => {
    if (entry.isFile) {
      found.push({
        path: prefix + entry.name,
        blob: await new Promise((resolve, reject) => entry.file(resolve, reject)),
      })
    } else await together(await readAll(entry), (child) => everything(child, `${prefix}${entry.name}/`))
  }
  await together(children, (child) => everything(child, `${skipped.path}/`))
  return found
}

export function readPicker(fileList) {
  return arrange([...fileList].map((file) => ({ path: file.webkitRelativePath || file.name, blob: file })))
}

/** Strips the common root, sets aside what is usually not wanted. */
function arrange(found) {
  const roots = new Set(found.map(({ path }) => path.split('/')[0]))
  const nested = found.length && found.every(({ path, blob }) => path.includes('/') || blob === null)
  const root = roots.size === 1 && nested ? [...roots][0] : ''
  const strip = (path) => (root ? path.slice(root.length + 1) : path)
  const files = [], skipped = new Map()
  for (const item of found) {
    const path = strip(item.path)
    if (!path) continue
    const part = skippedBy(path)
    if (item.skippedEntry) {
      skipped.set(path, { path, skippedEntry: item.skippedEntry, files: [] })
    } else if (part) {
      const parts = path.split('/')
      const at = parts.slice(0, parts.indexOf(part) + 1).join('/')
      if (!skipped.has(at)) skipped.set(at, { path: at, files: [] })
      skipped.get(at).files.push({ path, blob: item.blob })
    } else files.push({ path, blob: item.blob })
  }
  files.sort((a, b) => (a.path < b.path ? -1 : 1))
  return { root, files, skipped: [...skipped.values()] }
}
