// The page's state and what may happen to it. Views read, and call these functions.

import { computed, markRaw, reactive, ref, shallowReactive, shallowRef } from '../vendor/vue.runtime.esm-browser.prod.js'
import * as api from './api.js'
import { examplesFor } from './examples.js'
import { baseName, bytes as formatBytes, count, instant, plural, visible } from './format.js'
import { looksSecret, readDrop, readPicker, readSkipped } from './intake.js'
import { LogBuffer } from './log.js'
import { detectBuild, detectEntrypoint, detectInterpreter, emptyForm, fromManifest, onlyProgram, problems, toManifest } from './manifest.js'
import { LogStream } from './stream.js'
import { pack } from './tar.js'
import { headline } from './verdict.js'

const MIB = 1024 * 1024
const MAX_EDITABLE = MIB // bytes; beyond that a textarea is no editor
const MAX_INLINE = 200 * 1024 // of edited text sent as JSON instead of as an archive
const LIVE_S = 2 // a small job's answer tells it all; a longer one is followed by WebSocket
const REST_MS = 300 // what can wait does, until results are on the screen
const PATIENCE_MS = 120 // what ends sooner is shown when it has ended

// ── the clock: one for every countdown ───────────────────────────────────────

export const clock = ref(Date.now())
let clockTimer = 0
function tick() {
  clock.value = Date.now()
  clearTimeout(clockTimer)
  clockTimer = setTimeout(tick, job.active ? 100 : 1000)
}

// ── the server ───────────────────────────────────────────────────────────────

export const server = reactive({
  reach: 'connecting', // connecting, ready, offline, unset (no API at this address)
  asks: false, // the page is not served by the API: a field names its address
  address: '',
  info: null, stats: null, environments: [], interpreters: [], privacy: null,
})

export const maximum = computed(() => server.info?.limits?.maximum ?? null)
export const defaults = computed(() => server.info?.limits?.default ?? null)
const maxUpload = computed(() => (server.info?.limits?.max_upload_mb ?? 100) * MIB)
const maxFiles = computed(() => server.info?.limits?.max_files ?? 10_000)
export const quota = computed(() => server.stats?.your_quota ?? null)
export const examples = computed(() => examplesFor(server.interpreters, server.environments))

const API_KEY = 'sandrun.api'

// Storage may be switched off; nothing here depends on it.
export function readStorage(key) {
  try { return localStorage.getItem(key) } catch { return null }
}
export function writeStorage(key, value) {
  try { value == null ? localStorage.removeItem(key) : localStorage.setItem(key, value) } catch { /* not kept */ }
}

export async function connect(address) {
  if (address !== undefined) {
    address = address.trim().replace(/\/+$/, '')
    if (address && !/^https?:\/\//.test(address)) address = `http://${address}`
    api.connection.base = server.address = address
    server.reach = 'connecting'
  }
  try {
    const info = await api.info()
    if (info?.service == null) throw new api.ApiError(200, { error: 'Not a sandrun server', code: 'not_sandrun' })
    takeInfo(info)
    if (api.connection.base) writeStorage(API_KEY, api.connection.base)
  } catch (error) {
    // A static server answers with this very page: then a field asks for the API.
    const isStranger = error.status !== 0 && error.code !== 'unavailable' && error.status < 500
    if (isStranger && !api.connection.base) server.asks = true
    server.reach = isStranger ? 'unset' : 'offline'
    if (!isStranger) setTimeout(() => server.reach === 'offline' && connect(), 1500)
    return false
  }
  await Promise.allSettled([refreshEnvironments(), refreshStats()])
  return true
}

function takeInfo(info) {
  server.info = info
  server.interpreters = (info.interpreters ?? []).map((name) =>
    (typeof name === 'string' ? { name, version: '', extensions: [] } : name))
  server.reach = 'ready'
}

function takeEnvironments(found) {
  server.environments = found.environments ?? []
  if (found.interpreters?.length) server.interpreters = found.interpreters
}

function takeStats(stats) {
  server.stats = stats
  server.statsAt = Date.now()
}

const refreshEnvironments = async () => takeEnvironments(await api.environments())

async function refreshStats() {
  try {
    takeStats(await api.stats())
    if (server.reach === 'offline') server.reach = 'ready'
  } catch (error) {
    if (error.status === 0 && server.reach === 'ready') {
      server.reach = 'offline'
      probe()
    }
  }
}

let probing = false
async function probe() {
  if (probing) return
  probing = true
  while (server.reach === 'offline') {
    await new Promise((resolve) => setTimeout(resolve, 800))
    try {
      await api.stats()
      server.reach = 'ready'
      refreshStats()
    } catch (error) {
      if (error.status) server.reach = 'ready'
    }
  }
  probing = false
}

export async function loadPrivacy() {
  try {
    server.privacy = await api.privacy()
  } catch (error) {
    server.privacy = { error: error.message }
  }
}

/** CPU seconds left, counted on between two looks at the server. */
export const balance = computed(() => {
  const q = quota.value
  if (!q || !q.enforced) return null
  const grown = job.active ? 0 : ((clock.value - (server.statsAt ?? clock.value)) / 1000) * (q.limit / 60)
  return Math.min(q.limit, q.available + Math.max(0, grown))
})

// ── messages ─────────────────────────────────────────────────────────────────

export const toast = reactive({ text: '', action: null, kind: '', timer: 0 })

export function say(text, { action = null, kind = '', seconds = 5 } = {}) {
  clearTimeout(toast.timer)
  Object.assign(toast, { text, action: action && markRaw(action), kind })
  toast.timer = setTimeout(() => { toast.text = '' }, seconds * 1000)
}

export const spoken = ref('') // the live region's text

export async function copy(text, what) {
  try {
    await navigator.clipboard.writeText(text)
  } catch {
    // Without HTTPS there is no clipboard API.
    const area = document.createElement('textarea')
    area.value = text
    area.className = 'offscreen'
    ;(document.querySelector('dialog[open]') ?? document.body).append(area)
    area.select()
    document.execCommand('copy')
    area.remove()
  }
  say(`${what} copied`)
}

export function save(blob, name) {
  const link = document.createElement('a')
  link.href = URL.createObjectURL(blob)
  link.download = name
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000)
}

// ── the workspace: the files that will run ───────────────────────────────────
// A file is {path, blob, text, edited}; blob null: an empty directory.

export const work = shallowReactive({
  files: [], skipped: [], open: '', text: '', openState: 'text', // text, binary, large, none
  pristine: true, example: '', reading: 0, version: 0, goto: null,
})

export const form = reactive(emptyForm())

export const paths = computed(() => work.files.filter((file) => file.blob !== null || file.text != null).map((f) => f.path))
export const totalSize = computed(() => {
  work.version // edits change sizes
  return work.files.reduce((sum, file) => sum + sizeOf(file), 0)
})
export const secrets = computed(() => paths.value.filter(looksSecret))
const encoder = new TextEncoder()
export const sizeOf = (file) => (file.text != null ? encoder.encode(file.text).length : file.blob?.size ?? 0)

/** {path: text} if all files were written, pasted or changed here, else null. */
export const written = () => (work.files.every((file) => file.text != null)
  ? Object.fromEntries(work.files.map((file) => [file.path, file.text])) : null)

/** An archive that comes alone is unpacked by the server, and what is in it says what runs. */
export const archive = computed(() => (work.files.length === 1 && /\.(tar\.gz|tgz|tar|zip)$/i.test(work.files[0].path) ? work.files[0] : null))

// Where nothing says what runs, it is the file that one looks at.
export const entrypoint = computed(() => {
  const found = detectEntrypoint(form, paths.value)
  if (archive.value) return form.entrypoint.trim()
  if (found || paths.value.length === 1) return found || paths.value[0]
  const only = onlyProgram(form, paths.value, server.interpreters)
  if (only) return only
  const isProgram = detectInterpreter(form, work.open, server.interpreters) || detectBuild(form, work.open)
  return work.open && isProgram ? work.open : ''
})
export const interpreter = computed(() => detectInterpreter(form, entrypoint.value, server.interpreters))
export const build = computed(() => detectBuild(form, entrypoint.value))
export const formProblems = computed(() => problems(form, maximum.value, archive.value ? [] : paths.value))
export const manifest = computed(() => {
  let result
  try {
    result = toManifest(form)
  } catch {
    return null
  }
  if (!result.entrypoint && entrypoint.value && !detectEntrypoint(form, paths.value)) result.entrypoint = entrypoint.value
  // What the compiler made is no result, unless somebody asks for it.
  if (build.value) Object.assign(result, build.value, { outputs: result.outputs ?? ['*', `!${build.value.entrypoint}`] })
  return result
})
export const uploadProblem = computed(() => {
  if (paths.value.length > maxFiles.value) return `${plural(paths.value.length, 'file')} are more than the ${count(maxFiles.value)} that this server takes`
  if (totalSize.value > maxUpload.value * 4) return `${formatBytes(totalSize.value)} will not fit into an upload of ${formatBytes(maxUpload.value)}`
  return ''
})

function setForm(values) {
  Object.assign(form, emptyForm(), values)
}

export function openExample(example) {
  setWorkspace([{ path: example.path, blob: new Blob([]), text: example.code }], [])
  work.example = example.id
  work.pristine = true
  setForm({ ...example.form, interpreter: example.interpreter === 'bash' ? 'bash' : '' })
  openFile(example.path)
}

function setWorkspace(files, skipped) {
  work.files = files
  work.skipped = skipped
  work.pristine = false
  work.example = ''
  work.open = ''
  work.text = ''
  work.openState = 'none'
  work.version++
}

const fileAt = (path) => work.files.find((file) => file.path === path)

export async function openFile(path, line = null) {
  const file = fileAt(path)
  if (!file || (file.blob === null && file.text == null)) return
  if (file.text == null) {
    if (file.blob.size > MAX_EDITABLE) return showFile(file, 'large', '', null)
    const content = new Uint8Array(await file.blob.arrayBuffer())
    let text
    try {
      text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(content)
    } catch {
      text = null
    }
    // A textarea turns CR LF into LF: such a file is only edited if the user really types.
    if (text == null || text.includes('\0')) return showFile(file, 'binary', '', null)
    showFile(file, 'text', text, line)
  } else showFile(file, 'text', file.text, line)
}

function showFile(file, state, text, line) {
  work.open = file.path
  work.openState = state
  work.text = text
  work.goto = line == null ? null : { line, at: Date.now() }
}

export function edit(text) {
  const file = fileAt(work.open)
  if (!file) return
  if (file.path === 'job.json') work.jobJson = null // it was about the old one
  file.text = text
  file.edited = true
  work.text = text
  work.pristine = false
  work.version++
}

export function addFile(path, text = '') {
  path = path.trim().replace(/^\/+/, '')
  if (!path || path.split('/').some((part) => part === '..' || part === '.')) return
  if (!fileAt(path)) work.files = [...work.files, { path, blob: new Blob([]), text, edited: true }].sort(byPath)
  work.pristine = false
  openFile(path)
}

const byPath = (a, b) => (a.path < b.path ? -1 : 1)

/** Ask for a package as well, and run. */
export async function addRequirement(name) {
  const path = form.requirements.trim() || 'requirements.txt'
  const file = fileAt(path)
  const text = file ? file.text ?? (await file.blob.text()) : ''
  const lines = `${text}${text && !text.endsWith('\n') ? '\n' : ''}${name}\n`
  const entry = { path, blob: file?.blob ?? new Blob([]), text: lines, edited: true }
  const ran = entrypoint.value
  work.files = [...work.files.filter((other) => other.path !== path), entry].sort(byPath)
  work.pristine = false
  work.version++
  form.requirements = path
  if (work.open === path) work.text = lines
  if (entrypoint.value !== ran) form.entrypoint = ran // it ran because it was the only file
  run()
}

export function removeFile(path) {
  const inside = (file) => file.path === path || file.path.startsWith(`${path}/`)
  const before = work.files
  work.files = work.files.filter((file) => !inside(file))
  work.pristine = false
  if (!fileAt(work.open)) {
    work.open = ''
    work.openState = 'none'
    if (paths.value.length === 1) openFile(paths.value[0])
  }
  say(`${visible(path)} removed`, { action: { label: 'Undo', run: () => { work.files = before } } })
}

export function clearWorkspace() {
  const before = { files: work.files, skipped: work.skipped, open: work.open }
  setWorkspace([], [])
  say('Workspace emptied', {
    action: { label: 'Undo', run: () => { setWorkspace(before.files, before.skipped); openFile(before.open) } },
  })
}

async function take({ files, skipped }, replace) {
  if (!files.length && !skipped.length) return say('Nothing in there to run', { kind: 'warning' })
  const before = { files: work.files, skipped: work.skipped, open: work.open, pristine: work.pristine }
  if (replace || work.pristine) {
    setWorkspace(files, skipped)
    setForm({})
  } else {
    const names = new Set(files.map((file) => file.path))
    work.files = [...work.files.filter((file) => !names.has(file.path)), ...files].sort(byPath)
    work.skipped = [...work.skipped, ...skipped]
    work.version++
  }
  await readJobJson()
  const first = entrypoint.value || paths.value.find((path) => /^readme/i.test(path)) || paths.value[0]
  if (first) await openFile(first)
  const undo = { label: 'Undo', run: () => { setWorkspace(before.files, before.skipped); work.pristine = before.pristine; openFile(before.open) } }
  say(`${plural(files.length, 'file')} taken in`, { action: before.files.length ? undo : null })
}

async function readJobJson() {
  const file = fileAt('job.json')
  work.jobJson = null
  if (!file) return
  try {
    const value = JSON.parse(file.text ?? (await file.blob.text()))
    const { form: read, unknown } = fromManifest(value)
    setForm(read)
    work.jobJson = unknown.length ? { text: `job.json has what this server does not know: ${unknown.join(', ')}`, bad: true }
      : { text: 'job.json filled the settings', bad: false }
  } catch (error) {
    work.jobJson = { text: `job.json could not be read: ${error.message}`, bad: true }
  }
}

export async function takeDropped({ entries, text, hasDirectory }) {
  if (text) return takePasted(text)
  work.reading = 1
  try {
    await take(await readDrop(entries, (n) => { work.reading = n }), hasDirectory)
  } catch (error) {
    say(`Could not read the drop: ${error.message}`, { kind: 'error' })
  } finally {
    work.reading = 0
  }
}

export const takePicked = (fileList, isDirectory) => take(readPicker(fileList), isDirectory)

const SHEBANGS = { bash: 'main.bash', sh: 'main.sh', node: 'index.js', perl: 'main.pl', ruby: 'main.rb', php: 'main.php', lua: 'main.lua' }

// Most of what is pasted is Python; what surely is not gets its own name.
function nameOfPasted(text) {
  const hint = /^#!.*\b(bash|sh|node|perl|ruby|php|lua)\b/.exec(text)?.[1]
  if (hint) return SHEBANGS[hint]
  if (/^\s*#include\s*[<"]/m.test(text)) return /<iostream>|\bstd::/.test(text) ? 'main.cpp' : 'main.c'
  if (/^package main$/m.test(text)) return 'main.go'
  if (/^\s*(const|let) \w+ = |\bconsole\.log\(|=> \{$/m.test(text)) return 'index.js'
  return 'main.py'
}

export function takePasted(text) {
  text = text.replace(/\r\n?/g, '\n') // of the clipboard, not of the program: a shell would stumble over it
  return take({ files: [{ path: nameOfPasted(text), blob: new Blob([text]), text, edited: true }], skipped: [] }, false)
}

export async function includeSkipped(item) {
  work.skipped = work.skipped.filter((other) => other !== item)
  work.reading = 1
  try {
    const files = item.skippedEntry ? await readSkipped(item) : item.files
    const added = item.skippedEntry?.isFile ? [{ path: item.path, blob: await new Promise((done, fail) => item.skippedEntry.file(done, fail)) }] : files
    work.files = [...work.files, ...added].sort(byPath)
    work.version++
  } finally {
    work.reading = 0
  }
}

// ── the job ──────────────────────────────────────────────────────────────────

const emptyJob = () => ({
  id: '', viewId: '', readonly: false, title: '',
  phase: 'none', // none, packing, uploading, queued, running, collecting, done, gone
  status: '', exit_reason: null, position: 0, eta: null, meta: {}, evidence: [], advice: null,
  timeline: {}, limits: {}, manifest: null, outputs: [], skippedOutputs: {},
  upload: { sent: 0, total: 0, speed: 0, packed: 0, files: 0 }, uploadMs: null, collectMs: null,
  link: 'live', goneWhy: '', began: 0, cancelling: false,
})

export const job = reactive({ ...emptyJob(), active: false })
export const log = shallowRef(new LogBuffer())
export const logVersion = ref(0)
export const refusal = ref(null) // {message, code, field, until, armed}
export const history = ref([])

// Small outputs that come with a run's own answer. A preview that finds its file here asks nobody.
class Handed {
  constructor() {
    this.files = new Map()
    this.isOver = false
    this.waiting = []
  }

  put(path, data) {
    this.files.set(path, data)
    this._wake()
  }

  close() {
    this.isOver = true
    this._wake()
  }

  _wake() {
    for (const done of this.waiting.splice(0)) done()
  }

  async bytesOf(path) {
    while (!this.files.has(path) && !this.isOver) await new Promise((done) => this.waiting.push(done))
    return this.files.has(path) ? Uint8Array.from(atob(this.files.get(path)), (c) => c.charCodeAt(0)) : null
  }
}

let handed = null

/** The bytes of an output that is here already, or null. */
export const handedOver = (path) => handed?.bytesOf(path) ?? null

let stream = null
let uploadAbort = null
let statusTimer = 0
let skew = 0 // server's clock minus ours, in ms

const ACTIVE = new Set(['packing', 'uploading', 'queued', 'running', 'collecting'])

function setPhase(phase) {
  if (job.phase === phase) return
  job.phase = phase
  job.active = ACTIVE.has(phase)
  tick()
}

function forgetJob() {
  stream?.stop()
  stream = null
  handed = null
  clearTimeout(statusTimer)
  Object.assign(job, emptyJob())
  job.active = false
  log.value = new LogBuffer()
  logVersion.value++
}

export const canRun = computed(() =>
  server.reach === 'ready' && paths.value.length > 0 && !Object.keys(formProblems.value).length
  && !uploadProblem.value && !['packing', 'uploading'].includes(job.phase))

export const launches = ref(0) // how many runs the page has begun to show
let launching = false

export async function run() {
  if (launching) return
  if (!canRun.value) {
    const why = uploadProblem.value || Object.values(formProblems.value)[0]
      || (paths.value.length ? '' : 'There is nothing to run yet')
    if (why) say(why, { kind: 'warning' })
    return
  }
  launching = true
  refusal.value = null
  const launch = new Launch(manifest.value)
  uploadAbort = launch.abort
  try {
    const { answer, opening } = await send(launch)
    launch.show('queued')
    job.uploadMs = launch.uploadMs
    remember(answer, launch.manifest)
    follow(answer.job_id, { viewId: answer.view_id, answer, opening })
  } catch (error) {
    launch.takeBack()
    if (error.name !== 'AbortError') refuse(error)
  } finally {
    launching = false
  }
}

/** A run before it is accepted. Until `show` the page says what it said before: a job that
 *  ends in an instant makes nothing flicker, and a refused one takes nothing away. */
class Launch {
  constructor(sent) {
    this.manifest = sent
    this.abort = new AbortController()
    this.began = performance.now()
    this.before = null
    this.timer = setTimeout(() => this.show('uploading'), PATIENCE_MS)
  }

  show(phase) {
    clearTimeout(this.timer)
    if (!this.before) {
      this.before = { job: { ...job }, log: log.value, handed }
      forgetJob()
      job.title = entrypoint.value || paths.value[0]
      job.manifest = this.manifest
      job.limits = { ...defaults.value, ...this.manifest }
      job.began = this.began
      launches.value++
    }
    setPhase(phase)
  }

  accepted() {
    this.uploadMs = performance.now() - this.began
  }

  takeBack() {
    clearTimeout(this.timer)
    if (!this.before) return
    forgetJob()
    Object.assign(job, this.before.job)
    log.value = this.before.log
    handed = this.before.handed
    logVersion.value++
    tick()
  }
}

async function send(launch) {
  const files = written()
  if (files && totalSize.value < MAX_INLINE) return sendSmall(launch, files)
  const { signal } = launch.abort
  const ready = archive.value
  if (!ready) launch.show('packing')
  const blob = ready?.blob ?? await pack(work.files.map(entryOf), { signal, onFile: () => { job.upload.packed++ } })
  if (blob.size > maxUpload.value) {
    throw new api.ApiError(413, {
      error: `The packed upload has ${formatBytes(blob.size)}; this server takes ${formatBytes(maxUpload.value)}`, code: 'body_too_large',
    })
  }
  launch.show('uploading')
  job.upload.total = blob.size
  const body = new FormData()
  body.append('manifest', new Blob([JSON.stringify(launch.manifest)], { type: 'application/json' }))
  body.append('files', blob, ready?.path ?? 'job.tar.gz')
  const start = performance.now()
  const onProgress = (loaded, total) => {
    Object.assign(job.upload, { sent: loaded, total, speed: loaded / Math.max(0.001, (performance.now() - start) / 1000) })
  }
  const key = api.idempotencyKey()
  const answer = await retrying(() => api.submit(body, { key, onProgress, signal }))
  launch.accepted()
  return { answer, opening: null }
}

async function sendSmall(launch, files) {
  const body = JSON.stringify({ manifest: launch.manifest, files })
  const key = api.idempotencyKey(), { signal } = launch.abort
  const { accepted, rest, batches } = await retrying(() => api.run(body, { key, seconds: LIVE_S, signal }))
  launch.accepted()
  if (!rest.length) {
    // The log and the end of a short job are about to come: they are shown at once.
    const next = batches.next().catch(() => ({ done: true }))
    const { done, value } = await Promise.race([next, new Promise((resolve) => setTimeout(() => resolve({}), PATIENCE_MS))])
    if (value) rest.push(...value)
    else if (!done) return { answer: accepted, opening: { rest, batches: after(next, batches), abort: launch.abort } }
  }
  return { answer: accepted, opening: { rest, batches, abort: launch.abort } }
}

async function* after(next, batches) {
  const { done, value } = await next
  if (done) return
  yield value
  yield* batches
}

// A lost answer is asked for once more under the same key: the job never runs twice.
async function retrying(attempt) {
  try {
    return await attempt()
  } catch (error) {
    if (error.status !== 0) throw error
    await new Promise((resolve) => setTimeout(resolve, 400))
    return attempt()
  }
}

function entryOf(file) {
  if (file.blob === null && file.text == null) return { path: file.path, blob: null }
  return { path: file.path, blob: file.text != null ? new Blob([file.text]) : file.blob, mtime: file.blob?.lastModified }
}

function refuse(error) {
  const found = {
    message: error.message, code: error.code, status: error.status, field: error.details?.field ?? '', cure: error.details?.manifest ?? null,
    reason: error.details?.reason ?? '', until: error.retryAfter ? Date.now() + error.retryAfter * 1000 : 0, armed: false,
  }
  refusal.value = found
  spoken.value = found.message
  if (error.status === 0) {
    server.reach = 'offline'
    probe()
  }
  refreshStats()
}

/** Take what the server would like to read, and run. */
export function takeCure() {
  Object.assign(form, refusal.value.cure)
  refusal.value = null
  run()
}

/** After a 429: start by itself as soon as the quota allows. */
export function arm() {
  const waiting = refusal.value
  waiting.armed = true
  refusal.value = { ...waiting }
  const token = refusal.value
  setTimeout(() => { if (refusal.value === token) run() }, Math.max(0, waiting.until - Date.now()) + 150)
}

export async function cancel() {
  if (['packing', 'uploading'].includes(job.phase)) return uploadAbort?.abort()
  job.cancelling = true
  try {
    await api.cancel(job.id)
  } catch (error) {
    job.cancelling = false
    say(error.message, { kind: 'error' })
  }
}

export async function deleteNow() {
  try {
    await api.remove(job.id)
    leave('deleted')
  } catch (error) {
    if (error.status === 404) leave('deleted')
    else say(error.message, { kind: 'error' })
  }
}

function leave(why) {
  stream?.stop()
  clearTimeout(statusTimer)
  job.goneWhy = why
  setPhase('gone')
  forgetHistory(job.id)
  setFragment('')
  spoken.value = { deleted: 'Deleted from the server', delivered: 'Downloaded, and deleted from the server', expired: 'No longer on the server' }[why]
}

// ── following a job ──────────────────────────────────────────────────────────

function follow(id, { viewId = '', readonly = false, answer = null, opening = null } = {}) {
  job.id = id
  job.viewId = viewId
  job.readonly = readonly
  setPhase('queued')
  setFragment(readonly ? `view=${id}` : `job=${id}`)
  const isCurrent = () => job.id === id
  const own = handed = opening ? new Handed() : null
  stream = new LogStream(id, {
    records: (records) => {
      if (!isCurrent()) return
      if (job.phase === 'queued') setPhase('running')
      if (log.value.push(records)) logVersion.value++
    },
    state: (state) => { if (isCurrent()) job.link = state },
    end: (said) => { if (isCurrent()) finish(id, said) },
    gone: () => { if (isCurrent()) leave('expired') },
    reset: () => {
      if (!isCurrent()) return
      log.value = new LogBuffer()
      logVersion.value++
    },
    output: ({ path, data_base64: data }) => own.put(path, data),
    over: () => own.close(),
  }, opening)
  if (!job.active) return // it has ended already
  if (answer) {
    // It was said just now; a short job's log is here before anything else can be said.
    job.position = answer.position
    job.eta = answer.eta_s
    statusTimer = setTimeout(() => lookAfter(id), REST_MS)
  } else lookAfter(id)
}

async function lookAfter(id) {
  try {
    const found = await api.status(id)
    if (job.active) takeStatus(found, id) // else its end was told meanwhile, and this is older
  } catch (error) {
    if (job.id !== id) return
    if (error.status === 404) return leave('expired')
    if (error.status === 0 && server.reach === 'ready') {
      server.reach = 'offline'
      probe()
    }
  }
  if (job.id !== id || !job.active || job.phase === 'collecting') return
  statusTimer = setTimeout(() => lookAfter(id), job.phase === 'queued' ? 500 : 2000)
}

function takeStatus(found, id) {
  if (job.id !== id) return
  job.status = found.status
  job.exit_reason = found.exit_reason
  job.position = found.queue_position
  job.eta = found.eta_s
  job.meta = found.execution_metadata ?? {}
  job.evidence = found.evidence ?? []
  job.advice = found.remedy ?? null
  job.timeline = found.timeline ?? {}
  job.skippedOutputs = found.skipped_outputs ?? {}
  if (found.status === 'running' && job.phase === 'queued') setPhase('running')
}

async function finish(id, said) {
  clearTimeout(statusTimer)
  if (said.outputs) return finished(id, said, said.outputs.map(fromRun))
  setPhase('collecting')
  const start = performance.now()
  for (let attempt = 0; ; attempt++) {
    try {
      const [found, files] = await Promise.all([api.status(id), api.outputs(id)])
      if (job.id !== id) return
      job.collectMs = performance.now() - start
      return finished(id, found, files.files ?? [])
    } catch (error) {
      if (job.id !== id) return
      if (error.status === 404) return leave('expired')
      await new Promise((resolve) => setTimeout(resolve, Math.min(3000, 200 * 2 ** attempt)))
      if (job.id !== id) return
    }
  }
}

const fromRun = (file) => ({ ...file, name: baseName(file.path), mime_type: file.type })

function finished(id, found, outputs) {
  takeStatus(found, id)
  job.outputs = outputs
  setPhase('done')
  note({ id, state: job.status, exit_reason: job.exit_reason, said: headline(job) })
  spoken.value = `${headline(job)}. ${plural(job.outputs.length, 'output file')}.`
  setTimeout(refreshStats, REST_MS)
}

/** Reading a failed job keeps it a while longer: ask when it goes now. */
export async function refreshExpiry() {
  const id = job.id
  try {
    takeStatus(await api.status(id), id)
  } catch (error) {
    if (error.status === 404 && job.id === id) leave('expired')
  }
}

export const expiresIn = computed(() => {
  const at = instant(job.timeline?.expires)
  return at == null || job.phase !== 'done' ? null : (at - skew - clock.value) / 1000
})

export function expireLocally() {
  leave('expired')
}

export function delivered() {
  leave('delivered')
}

// ── history and links ────────────────────────────────────────────────────────

const HISTORY_KEY = 'sandrun.history'

function loadHistory() {
  try {
    history.value = JSON.parse(sessionStorage.getItem(HISTORY_KEY)) ?? []
  } catch {
    history.value = []
  }
}

function storeHistory() {
  try {
    sessionStorage.setItem(HISTORY_KEY, JSON.stringify(history.value))
  } catch {
    // Full: the sources of older jobs go first.
    history.value = history.value.map((entry, i) => (i < 3 ? entry : { ...entry, files: null })).slice(0, 20)
    try { sessionStorage.setItem(HISTORY_KEY, JSON.stringify(history.value)) } catch { /* then it is not kept */ }
  }
}

function remember(answer, sent) {
  const isSmall = totalSize.value < 100 * 1024 && work.files.every((file) => file.text != null)
  history.value = [{
    id: answer.job_id, viewId: answer.view_id, title: job.title, at: Date.now(), state: 'queued', exit_reason: null,
    manifest: sent, form: JSON.parse(JSON.stringify(form)), uploadMs: job.uploadMs,
    files: isSmall ? work.files.map(({ path, text }) => ({ path, text })) : null,
  }, ...history.value].slice(0, 30)
  storeHistory()
}

function note({ id, ...facts }) {
  history.value = history.value.map((entry) => (entry.id === id ? { ...entry, ...facts } : entry))
  storeHistory()
}

function forgetHistory(id) {
  history.value = history.value.map((entry) => (entry.id === id ? { ...entry, state: 'gone' } : entry))
  storeHistory()
}

export function clearHistory() {
  history.value = []
  storeHistory()
}

/** An older job's source and settings, to be edited and run again. */
export function restore(entry) {
  setWorkspace(entry.files.map(({ path, text }) => ({ path, text, blob: new Blob([]), edited: true })), [])
  setForm(JSON.parse(JSON.stringify(entry.form)))
  openFile(entrypoint.value || entry.files[0].path)
}

/** Look at a job again; its source comes back too, where this tab still has it. */
export function reopen(entry) {
  forgetJob()
  refusal.value = null
  if (entry.files) restore(entry)
  job.title = entry.title
  job.manifest = entry.manifest
  job.limits = { ...defaults.value, ...entry.manifest }
  job.uploadMs = entry.uploadMs ?? null
  if (entry.state === 'gone') {
    job.id = entry.id
    job.goneWhy = 'expired'
    setPhase('gone')
  } else follow(entry.id, { viewId: entry.viewId })
}

// The secret stays behind the "#": it reaches no server, no log and no Referer.
function setFragment(text) {
  const target = location.pathname + location.search + (text ? `#${text}${apiSuffix()}` : '')
  window.history.replaceState(null, '', target)
}

const apiSuffix = () => (server.asks && server.address ? `&api=${encodeURIComponent(server.address)}` : '')

export const viewLink = () =>
  `${location.origin}${location.pathname}#view=${job.readonly ? job.id : job.viewId}${apiSuffix()}`

function openFragment() {
  const asked = new URLSearchParams(location.hash.slice(1))
  const own = asked.get('job'), view = asked.get('view')
  const valid = (id) => /^[A-Za-z0-9_-]{16,128}$/.test(id ?? '')
  if (valid(own)) {
    const entry = history.value.find((known) => known.id === own)
    if (entry) reopen(entry)
    else {
      forgetJob()
      job.title = 'Job'
      follow(own)
    }
  } else if (valid(view)) {
    forgetJob()
    job.title = 'Shared job'
    follow(view, { readonly: true })
  }
}

// ── the start ────────────────────────────────────────────────────────────────

/** Before the first paint: what the page brought is in it. */
export function start() {
  loadHistory()
  tick()
  const brought = api.brought()
  if (brought) {
    takeInfo(brought.info)
    takeEnvironments(brought.environments)
    takeStats(brought.stats)
  }
  openExample(examples.value[0])
  if (brought) begin()
  else connectFirst().then(begin)
}

async function connectFirst() {
  const asked = new URLSearchParams(location.hash.slice(1)).get('api')
  // A link may suggest an API, but only one that this browser has used before is taken
  // without a click: files go there.
  const known = readStorage(API_KEY)
  await connect()
  if (server.reach === 'unset') {
    server.address = asked ?? known ?? ''
    if (known && (!asked || asked === known)) await connect(known)
  }
  if (work.pristine && work.example) openExample(examples.value.find(({ id }) => id === work.example) ?? examples.value[0])
}

function begin() {
  openFragment()
  addEventListener('hashchange', openFragment)
  const look = () => {
    if (!document.hidden && server.reach === 'ready') refreshStats()
  }
  setInterval(look, 15_000)
  document.addEventListener('visibilitychange', look)
}
