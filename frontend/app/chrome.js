// Everything around the two panes: header, banners, dialogs, drop overlay, toast.

import { reactive, ref } from '../vendor/vue.runtime.esm-browser.prod.js'
import { Dialog, meter } from './controls.js'
import { amount, seconds, visible } from './format.js'
import { html } from './html.js'
import { icon } from './icons.js'
import * as store from './store.js'
import { balance, history, quota, server } from './store.js'

export const dialogs = reactive({ open: '' })
const close = () => { dialogs.open = '' }

// ── theme ────────────────────────────────────────────────────────────────────

const theme = ref(document.documentElement.dataset.theme ?? 'auto')
const THEMES = { auto: ['dark', 'Theme: as the system'], dark: ['light', 'Theme: dark'], light: ['auto', 'Theme: light'] }
const THEME_ICON = { auto: 'auto', dark: 'moon', light: 'sun' }

function nextTheme() {
  const [next] = THEMES[theme.value]
  theme.value = next
  if (next === 'auto') delete document.documentElement.dataset.theme
  else document.documentElement.dataset.theme = next
  store.writeStorage('sandrun.theme', next === 'auto' ? null : next)
}

// ── header ───────────────────────────────────────────────────────────────────

const quotaMeter = () => {
  const q = quota.value
  const left = q ? Math.max(0, balance.value ?? q.available) : null
  const share = q ? left / q.limit : 0
  const title = q ? `CPU budget: ${amount(left)} of ${amount(q.limit)} s left. Jobs: ${q.active_jobs} of ${q.max_active_jobs ?? '–'} running, ${q.jobs_this_hour ?? '–'} of ${q.max_jobs_per_hour ?? '–'} this hour` : 'CPU budget'
  // Same boxes in every state: nothing in the header may move.
  if (q && !q.enforced) {
    return html`<span class="quota unlimited" key="unlimited" title="This server has no quota: run as much as you like"><span class="quota-text">unlimited</span></span>`
  }
  return html`<span class="quota" key="quota" title=${title}>
    <span class="quota-text"><span class="wide-only">CPU budget </span><b>${q ? amount(left) : '–'}</b> / ${q ? amount(q.limit) : '–'} s</span>
    ${meter(share, share < 0.15 ? 'bad' : share < 0.4 ? 'warning' : 'sand')}
  </span>`
}

const tool = (name, label, run, extra) => html`<button type="button" class="button quiet square" aria-label=${label} title=${label} onClick=${run}>${icon(name)}${extra}</button>`

const MARK = () => html`<svg class="mark-logo" viewBox="0 0 24 24" width="22" height="22" aria-hidden="true">
  <rect x="1.5" y="1.5" width="21" height="21" rx="5.5" />
  <path d="M8.4 6.9 16.6 12l-8.2 5.1z" />
  <circle cx="5.3" cy="18.6" r=".9" /><circle cx="18.7" cy="5.4" r=".9" /><circle cx="18.7" cy="18.6" r=".9" />
</svg>`

export const header = () => html`<header class="top">
  <h1 class="brand">${MARK()}<span>sandrun</span></h1>
  <span class=${['reach', server.reach]}><i></i><span>${{ ready: server.address ? new URL(server.address).host : 'ready', connecting: 'connecting', offline: 'offline', unset: 'not connected' }[server.reach]}</span></span>
  <div class="top-end">
    ${quotaMeter()}
    ${tool('history', 'Jobs of this tab', () => { dialogs.open = 'history' }, history.value.length > 0 && html`<span class="badge-dot"></span>`)}
    ${tool('shield', 'Privacy and isolation', () => { dialogs.open = 'trust'; store.loadPrivacy() })}
    ${tool('keys', 'Keyboard', () => { dialogs.open = 'keys' })}
    ${tool(THEME_ICON[theme.value], THEMES[theme.value][1], nextTheme)}
  </div>
</header>`

// ── banners ──────────────────────────────────────────────────────────────────

const Connect = {
  setup() {
    const address = ref(server.address || 'http://127.0.0.1:8000')
    const failed = ref('')
    async function go(event) {
      event.preventDefault()
      failed.value = ''
      if (!(await store.connect(address.value))) failed.value = server.reach === 'offline' ? 'No answer from there.' : 'Something answers there, but it is not sandrun.'
    }
    return () => html`<form class="connect" onSubmit=${go}>
      <label for="api-address">Address of the sandrun API</label>
      <div class="field-row"><input id="api-address" class="input mono" type="url" spellcheck="false" value=${address.value} onInput=${(e) => { address.value = e.target.value }} />
      <button class="button primary">Connect</button></div>
      <p class="hint" role="status">${failed.value || 'This page was not served by sandrun itself. Your files go to the address above and nowhere else.'}</p>
    </form>`
  },
}

export const banner = () => {
  if (server.reach === 'unset' || (server.asks && server.reach !== 'ready')) return html`<div class="banner" key="connect"><${Connect} /></div>`
  if (server.reach === 'offline') {
    return html`<div class="banner offline" key="offline" role="status">${icon('offline')}<p><b>The server does not answer.</b> It may be restarting; running jobs go on. This page tries again by itself.</p></div>`
  }
  return null
}

// ── dialogs ──────────────────────────────────────────────────────────────────

const STATE = { queued: 'Queued', running: 'Running', gone: 'No longer on the server' }

const historyDialog = () => html`<${Dialog} title="Jobs of this tab" onClose=${close}>
  ${history.value.length === 0 ? html`<p class="quiet-state">No job yet. Closing the tab forgets this list.</p>` : html`<div>
    <ul class="history">${history.value.map((entry) => html`<li key=${entry.id}>
      <span class=${['lamp', entry.exit_reason === 'cancelled' ? 'gone' : entry.state]} aria-hidden="true"></span>
      <button type="button" class="row-main" onClick=${() => { close(); store.reopen(entry) }}>
        <b><bdi>${visible(entry.title)}</bdi></b>
        <small>${entry.said ?? STATE[entry.state]}, ${new Date(entry.at).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' })}</small>
      </button>
      ${entry.files && html`<button type="button" class="button quiet small" onClick=${() => { close(); store.restore(entry); }}>Edit and run again</button>`}
    </li>`)}</ul>
    <footer><p class="hint">Kept in this tab only, until it is closed.</p>
    <button type="button" class="button quiet small" onClick=${store.clearHistory}>Forget all</button></footer>
  </div>`}
<//>`

const words = (key) => key.replaceAll('_', ' ').replace(/^./, (c) => c.toUpperCase())
  .replace(/^(Ipc|Uts|Pid)\b/, (name) => name.toUpperCase()).replace(/^Net\b/, 'Network').replace(/\bprivs$/, 'privileges')

const isOn = (value) => value === true || value === 'on'

const facts = (entries) => html`<dl class="facts-list">${entries.map(([key, value]) => html`<div key=${key}><dt>${words(key)}</dt><dd>${visible(typeof value === 'object' ? JSON.stringify(value) : value)}</dd></div>`)}</dl>`

function retention([key, value]) {
  const [, name, unit] = /^(.*?)_(seconds|s|mb)$/.exec(key) ?? [null, key, '']
  if (unit === 'mb') return [`${name} at most`, `${value} MB`]
  return [name, unit ? (value === 0 ? 'deleted at once' : seconds(value)) : value]
}

const trustDialog = () => {
  const p = server.privacy
  return html`<${Dialog} title="Privacy and isolation" wide onClose=${close}>
    <p class="lead">Measured by this server while you look, not promised in prose.</p>
    ${!p ? html`<p class="quiet-state">Loading…</p>` : p.error ? html`<p class="quiet-state">${p.error}</p>` : html`<div class="trust">
      <section><h3>Isolation layers</h3>
        <ul class="layers">${Object.entries(p.isolation ?? {}).map(([name, value]) => html`<li key=${name} class=${{ on: isOn(value) }}>
          ${icon(isOn(value) ? 'check' : 'warning', 14)}<span>${words(name)}</span>${!isOn(value) && html`<small>${visible(value)}</small>`}<span class="offscreen">${isOn(value) ? 'on' : 'off'}</span></li>`)}</ul>
      </section>
      <section><h3>Kept until</h3>${facts(Object.entries(p.retention ?? {}).map(retention))}
        <h3>Where job data lies</h3>${facts(Object.entries(p.facts ?? {}))}
        <h3>Logged</h3><p>${visible(p.logged ?? '')}</p>
        <h3>Addresses</h3><p>${visible(p.addresses ?? '')}</p></section>
    </div>`}
  <//>`
}

const KEYS = [
  ['Run', ['Ctrl', 'Enter']], ['Stop the job', ['Ctrl', '.']], ['Search the log', ['/']], ['Leave the editor', ['Esc', 'Tab']],
  ['Code or settings', ['Alt', '1'], ['Alt', '2']], ['To the log', ['Alt', 'L']], ['This list', ['?']],
]

const keysDialog = () => html`<${Dialog} title="Keyboard" onClose=${close}>
  <dl class="keys">${KEYS.map(([what, ...combos]) => html`<div key=${what}><dt>${what}</dt><dd>${combos.map((combo, i) => html`${i > 0 && html`<span class="or"></span>`}${combo.map((key) => html`<kbd>${key}</kbd>`)}`)}</dd></div>`)}</dl>
<//>`

export const openDialog = () => ({ history: historyDialog, trust: trustDialog, keys: keysDialog })[dialogs.open]?.()

// ── toast, drop overlay, live region ─────────────────────────────────────────

export const toastView = () => store.toast.text && html`<div class=${['toast', store.toast.kind]} role=${store.toast.kind === 'error' ? 'alert' : 'status'}>
  <span>${store.toast.text}</span>
  ${store.toast.action && html`<button type="button" class="link" onClick=${() => { store.toast.action.run(); store.toast.text = '' }}>${store.toast.action.label}</button>`}
</div>`

export const dropOverlay = (isOver) => isOver && html`<div class="drop-overlay" aria-hidden="true"><div>${icon('folder', 32)}<b>Drop to take it in</b><span>Folders are read all the way down</span></div></div>`

export const liveRegion = () => html`<div class="offscreen" role="status" aria-live="polite" aria-atomic="true">${store.spoken.value}</div>`
