// The right pane: state, stepper, usage, verdict, log, outputs.

import { computed, nextTick, watch } from '../vendor/vue.runtime.esm-browser.prod.js'
import { ConfirmButton, menuItem, meter, popover } from './controls.js'
import { amount, bytes, countdown, instant, plural, roughly, seconds, visible } from './format.js'
import { html } from './html.js'
import { icon } from './icons.js'
import { LogView } from './logview.js'
import { asCurl, asJobJson, asPython } from './manifest.js'
import { Outputs } from './outputs.js'
import { ui } from './source.js'
import * as store from './store.js'
import { clock, expiresIn, form, job, maximum } from './store.js'
import { evidence, headline, raiseLabel, remedy } from './verdict.js'

export const mood = computed(() => {
  if (job.active) return 'running'
  if (job.phase === 'gone') return 'gone'
  if (job.phase !== 'done') return 'idle'
  if (job.status === 'completed') return 'good'
  return ['cancelled', 'expired'].includes(job.exit_reason) ? 'muted' : 'bad'
})

const GONE = { deleted: 'Deleted from the server', delivered: 'Downloaded, and deleted from the server', expired: 'No longer on the server' }

export const stateText = computed(() => {
  switch (job.phase) {
    case 'none': return 'Ready'
    case 'packing': return 'Packing'
    case 'uploading': return 'Uploading'
    case 'queued': return 'Queued'
    case 'running': return job.cancelling ? 'Stopping' : 'Running'
    case 'collecting': return 'Collecting outputs'
    case 'gone': return GONE[job.goneWhy] ?? 'Gone'
    default: return headline(job)
  }
})

// ── stepper ──────────────────────────────────────────────────────────────────

const ORDER = { none: -1, packing: 0, uploading: 0, queued: 1, running: 2, collecting: 3, done: 4, gone: 4 }

function durations() {
  const { submitted, started, ended } = job.timeline
  const now = clock.value
  const since = (start) => Math.max(0, (now - instant(start)) / 1000)
  return [
    job.uploadMs != null ? job.uploadMs / 1000 : ORDER[job.phase] === 0 ? (performance.now() - job.began) / 1000 : null,
    submitted == null ? null : started != null ? started - submitted : job.phase === 'queued' ? since(submitted) : ended != null ? ended - submitted : null,
    // A short job's start and end reach http in one go: then its own clock knows better.
    started == null ? null : ended != null ? Math.max(ended - started, (job.meta.wall_time_ms ?? 0) / 1000) : since(started),
    job.collectMs != null ? job.collectMs / 1000 : null,
  ]
}

function uploadDetail() {
  const { sent, total, speed, packed } = job.upload
  if (job.phase === 'packing') return packed ? `${packed} files` : ''
  if (job.phase === 'uploading' && total) return `${Math.round((sent / total) * 100)}% of ${bytes(total)}${speed ? `, ${bytes(speed)}/s` : ''}`
  return ''
}

function queueDetail() {
  if (job.phase !== 'queued' || !job.position) return ''
  return `#${job.position}${job.eta ? `, about ${roughly(job.eta)}` : ''}`
}

const stepper = () => {
  const at = ORDER[job.phase], times = durations()
  const details = [uploadDetail(), queueDetail(), '', job.outputs.length ? plural(job.outputs.length, 'file') : '']
  const neverRan = job.phase === 'done' && job.timeline.started == null
  const isUnknown = job.phase === 'gone' && job.timeline.submitted == null // a link to what is no longer there
  return html`<ol class="steps" aria-label="Progress">${['Upload', 'Queue', 'Run', 'Outputs'].map((name, i) => {
    const state = isUnknown ? 'later' : i < at ? (neverRan && i >= 2 ? 'unreached' : 'done') : i === at ? 'now' : 'later'
    const share = i === 0 && job.phase === 'uploading' && job.upload.total ? job.upload.sent / job.upload.total : null
    return html`<li key=${name} class=${['step', state, i === 2 && state === 'done' ? mood.value : '']} aria-current=${state === 'now' ? 'step' : null}>
      <span class="step-bar">${html`<i style=${share != null ? { transform: `scaleX(${share})` } : null}></i>`}</span>
      <span class="step-name">${name}</span><span class="step-time">${details[i] || (state === 'unreached' ? '' : times[i] != null && at >= i ? seconds(times[i]) : '')}</span>
    </li>`
  })}</ol>`
}

// ── usage ────────────────────────────────────────────────────────────────────

const USAGE = [
  ['CPU', 'cpu_seconds', (m) => m.cpu_seconds, (v) => seconds(v), 'cpu_limit', 1],
  ['Wall', 'timeout', (m) => (m.wall_time_ms ?? 0) / 1000, (v) => seconds(v), 'wall_timeout', 1],
  ['Memory', 'memory_mb', (m) => (m.memory_peak_bytes ?? 0) / 2 ** 20, (v) => bytes(v * 2 ** 20), 'out_of_memory', 1],
  ['Processes', 'processes', (m) => m.processes_peak || null, (v) => String(v), 'process_limit', 1],
  ['Output', 'output_mb', (m) => (m.output_bytes ?? 0) / 2 ** 20, (v) => bytes(Math.round(v * 2 ** 20)), 'output_limit', 1],
]
const limitText = { cpu_seconds: (v) => `${amount(v)} s`, timeout: (v) => `${amount(v)} s`, memory_mb: (v) => `${amount(v)} MB`, processes: (v) => `${v}`, output_mb: (v) => `${amount(v)} MB` }

const usage = () => html`<dl class="usage">${USAGE.map(([label, key, read, write, reason]) => {
  const limit = job.limits[key] ?? store.defaults.value?.[key]
  const isMeasured = ['done', 'gone'].includes(job.phase) && job.timeline.started != null
  let value = isMeasured ? read(job.meta) : null
  if (job.phase === 'running' || job.phase === 'collecting') {
    if (key === 'timeout' && job.timeline.started) value = Math.max(0, (clock.value - instant(job.timeline.started)) / 1000)
    else value = read(job.meta) || null
  }
  const known = value != null && job.phase !== 'none'
  const over = job.exit_reason === reason
  return html`<div key=${label} class=${{ over }}>
    <dt>${label}</dt>
    <dd><b>${known ? write(value) : '–'}</b>${limit != null && html`<span><span class="offscreen"> of </span>${limitText[key](limit)}</span>`}</dd>
    ${meter(known && limit ? (over ? 1 : value / limit) : 0, over ? 'bad' : known && value / limit > 0.85 ? 'warning' : '')}
  </div>`
})}</dl>`

// ── verdict ──────────────────────────────────────────────────────────────────

function raise({ key, to }) {
  form[key] = to
  store.run()
}

// Where a wrong requirement is mended, if its file is still in the workspace.
function requirementsFile() {
  const path = job.manifest?.requirements
  return job.exit_reason === 'dependency_error' && !job.readonly && store.paths.value.includes(path) ? path : ''
}

function openList(path) {
  ui.tab = 'code'
  store.openFile(path, 1)
}

// A job.json that the server refused is mended where it lies.
const refusedJobJson = () => job.exit_reason === 'upload_error' && !job.readonly
  && job.evidence.some((fact) => fact.includes('job.json')) && store.paths.value.includes('job.json')

/** The setting that an upload was refused for, where the settings say it. */
function refusedSetting() {
  if (job.exit_reason !== 'upload_error' || job.readonly || refusedJobJson()) return ''
  const [, name] = /^(entrypoint|interpreter|build|requirements): /.exec(job.evidence[0] ?? '') ?? []
  return name ?? ''
}

/** {label, run} for advice that the page can follow by itself. */
function followAdvice() {
  if (job.readonly || !store.paths.value.length) return null
  const [, name] = /^the module [\w.-]+ is not there: add a line "([\w.-]+)" to a requirements\.txt/.exec(job.advice ?? '') ?? []
  return name && { label: `Add ${name} and run again`, run: () => store.addRequirement(name) }
}

function openSetting(name) {
  ui.tab = 'settings'
  nextTick(() => document.getElementById(`f-${name}`)?.focus())
}

const verdict = () => {
  if (job.phase !== 'done' || job.status !== 'failed') return null
  const suggestion = remedy(job, maximum.value)
  const canRaise = suggestion?.to && !job.readonly && store.paths.value.length > 0
  const facts = evidence(job)
  const list = requirementsFile()
  const follow = followAdvice(), setting = refusedSetting()
  if (!facts.length && !job.advice && !suggestion && !list) return null
  return html`<div class=${['verdict', mood.value]}>
    ${facts.length > 0 && html`<ul class="evidence" aria-label="Evidence">${facts.map((fact) => html`<li><code>${fact.split('\n').map(visible).join('\n')}</code></li>`)}</ul>`}
    ${job.advice && !canRaise && html`<p>${visible(job.advice)}</p>`}
    ${list && html`<button type="button" class="button" onClick=${() => openList(list)}>${icon('file')}<span>Open <bdi>${visible(list)}</bdi></span></button>`}
    ${refusedJobJson() && html`<button type="button" class="button" onClick=${() => openList('job.json')}>${icon('file')}<span>Open job.json</span></button>`}
    ${setting && html`<button type="button" class="button" onClick=${() => openSetting(setting)}>${icon('gear')}<span>Set the ${setting}</span></button>`}
    ${follow && html`<button type="button" class="button" onClick=${follow.run}>${icon('play')}<span>${follow.label}</span></button>`}
    ${job.advice?.includes('"stdin"') && !job.readonly && html`<button type="button" class="button" onClick=${() => openSetting('stdin')}>${icon('text')}<span>Give it input</span></button>`}
    ${suggestion && !suggestion.to && !job.advice && html`<p>That is already the most that this server gives.</p>`}
    ${canRaise && html`<button type="button" class="button" onClick=${() => raise(suggestion)}>${icon('up')}<span>${raiseLabel(suggestion)} and run again</span></button>`}
  </div>`
}

// ── head ─────────────────────────────────────────────────────────────────────

const origin = () => store.server.address || location.origin

const share = ({ close }) => html`<div class="menu" role="group" aria-label="Share">
  ${(job.viewId || job.readonly) && menuItem('Copy view link', () => { store.copy(store.viewLink(), 'View link'); close() }, { icon: 'eye', note: 'can look, not cancel' })}
  ${job.manifest && html`<hr />`}
  ${job.manifest && menuItem('Copy as curl', () => { store.copy(asCurl(origin(), job.manifest, store.paths.value, store.written()), 'Command'); close() }, { icon: 'copy' })}
  ${job.manifest && menuItem('Copy as Python', () => { store.copy(asPython(origin(), job.manifest), 'Program'); close() }, { icon: 'copy' })}
  ${job.manifest && menuItem('Copy job.json', () => { store.copy(asJobJson(job.manifest), 'job.json'); close() }, { icon: 'copy' })}
</div>`

const subline = () => {
  const facts = []
  if (job.phase === 'none') return html`<p class="sub">${'Nothing has run yet'}</p>`
  if (job.title) facts.push(visible(job.title))
  if (job.meta.interpreter && job.phase !== 'gone') facts.push(job.meta.interpreter === 'binary' ? 'compiled' : job.meta.interpreter)
  if (job.phase === 'done') {
    if (job.meta.environment && job.meta.environment !== 'default') facts.push(job.meta.environment)
    if (job.exit_reason === 'exited') facts.push(`exit code ${job.meta.exit_code ?? 0}`)
  }
  return html`<p class="sub">${facts.join(' · ')}</p>`
}

const head = () => {
  const left = expiresIn.value
  const present = job.phase === 'done' && job.id
  return html`<header class="job-head">
    <div class=${['state', mood.value]}>
      <span class="lamp" aria-hidden="true"></span>
      <div><h2>${stateText.value}</h2>${subline()}</div>
    </div>
    <div class="job-actions">
      ${job.readonly && html`<span class="badge" title="You can look and download; only the owner can cancel or delete">${icon('eye', 14)}view only</span>`}
      ${present && left != null && html`<span class="expiry" title="Then the server deletes it"><span>deleted in</span> <b>${countdown(left)}</b></span>`}
      ${present && !job.readonly && html`<${ConfirmButton} label="Delete now" sure="Press again" icon="trash" kind="quiet small" onConfirm=${store.deleteNow} />`}
      ${job.id && job.phase !== 'gone' && popover({ label: 'Share', name: 'Share', icon: 'link', kind: 'quiet small' }, share)}
    </div>
  </header>`
}

export const JobPane = {
  setup() {
    watch(expiresIn, (left) => { if (left != null && left <= 0) store.expireLocally() })
    return () => html`<section class=${['pane', 'job', mood.value, { 'has-outputs': job.outputs.length > 0 }]} aria-label="Job">
      ${head()}
      ${stepper()}
      ${usage()}
      ${verdict()}
      <div class="results">
        <${LogView} />
        <${Outputs} />
      </div>
    </section>`
  },
}
