// Puts the page together. Nothing here knows a route or a format.

import { createApp, ref, watch, watchEffect } from '../vendor/vue.runtime.esm-browser.prod.js'
import { banner, dialogs, dropOverlay, header, liveRegion, openDialog, toastView } from './chrome.js'
import { html } from './html.js'
import { takeDrop } from './intake.js'
import { JobPane, mood, stateText } from './job.js'
import { SourcePane, ui } from './source.js'
import * as store from './store.js'

// ── title and icon follow the state ──────────────────────────────────────────

const ICON_COLOURS = { idle: '#e9b44c', running: '#5b9dff', good: '#3fb27f', bad: '#e5534b', muted: '#8b8f98', gone: '#8b8f98' }

watchEffect(() => {
  const { title } = store.job
  const isIdle = mood.value === 'idle'
  document.title = isIdle ? 'sandrun' : `${stateText.value}${title ? ` – ${title.split('/').pop()}` : ''} – sandrun`
})

// Browsers draw an icon anew for each change: not while there is something to see on the page.
let iconTimer = 0
watch(mood, (now) => {
  clearTimeout(iconTimer)
  iconTimer = setTimeout(() => {
    const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24"><rect x="1" y="1" width="22" height="22" rx="6" fill="${ICON_COLOURS[now]}"/><path d="M8.5 7v10l8-5z" fill="#15130e"/></svg>`
    document.querySelector('link[rel=icon]').href = `data:image/svg+xml,${encodeURIComponent(svg)}`
  }, 300)
}, { immediate: true })

watch(mood, (now) => {
  if (now === 'running') store.spoken.value = 'The job has started'
})

// Where the panes stand below each other, a run leads to its results.
watch(store.launches, () => {
  if (!matchMedia('(max-width: 899px)').matches) return
  const calm = matchMedia('(prefers-reduced-motion: reduce)').matches
  document.querySelector('.pane.job').scrollIntoView({ block: 'start', behavior: calm ? 'auto' : 'smooth' })
})

// ── whole-page drop, paste, keys ─────────────────────────────────────────────

const isOver = ref(false)
let depth = 0

const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes('Files')

addEventListener('dragenter', (event) => {
  if (!carriesFiles(event)) return
  depth++
  isOver.value = true
})
addEventListener('dragleave', (event) => {
  if (!carriesFiles(event)) return
  depth = Math.max(0, depth - 1)
  if (!depth) isOver.value = false
})
addEventListener('dragover', (event) => { if (carriesFiles(event)) event.preventDefault() })
addEventListener('drop', (event) => {
  if (!carriesFiles(event)) return
  event.preventDefault()
  depth = 0
  isOver.value = false
  ui.tab = 'code'
  store.takeDropped(takeDrop(event.dataTransfer))
})

addEventListener('paste', (event) => {
  if (event.target.closest?.('input, textarea, [contenteditable]')) return
  const files = [...event.clipboardData.files]
  const text = event.clipboardData.getData('text/plain')
  if (files.length) store.takePicked(files, false)
  else if (text.trim()) store.takePasted(text)
})

const isTyping = (event) => event.target.closest?.('input, textarea, select')

addEventListener('keydown', (event) => {
  const command = event.ctrlKey || event.metaKey
  if (document.querySelector('dialog[open]')) return
  if (command && event.key === 'Enter') {
    event.preventDefault()
    if (!store.job.active) store.run()
  } else if (command && event.key === '.') {
    event.preventDefault()
    if (store.job.active && !store.job.readonly) store.cancel()
  } else if (event.altKey && ['1', '2'].includes(event.key)) {
    event.preventDefault()
    ui.tab = event.key === '1' ? 'code' : 'settings'
    document.getElementById(`tab-${ui.tab}`)?.focus()
  } else if (event.altKey && event.key.toLowerCase() === 'l') {
    event.preventDefault()
    document.querySelector('.log-scroll')?.focus()
  } else if (event.key === '?' && !isTyping(event)) dialogs.open = 'keys'
})

addEventListener('beforeunload', (event) => {
  if (['packing', 'uploading'].includes(store.job.phase)) event.preventDefault()
})

// What had the focus and is gone (a remedy that was taken, a file that was removed) leaves it to Run.
let focused = null
addEventListener('focusin', (event) => { focused = event.target })
addEventListener('focusout', ({ target }) => queueMicrotask(() => { if (focused === target && target.isConnected) focused = null }))
new MutationObserver(() => {
  if (!focused || focused.isConnected) return
  focused = null
  const isLost = document.activeElement === document.body && !document.querySelector('dialog[open]')
  if (isLost) document.querySelector('.run')?.focus({ preventScroll: true })
}).observe(document.getElementById('app'), { childList: true, subtree: true })

// ── the page ─────────────────────────────────────────────────────────────────

const App = {
  setup: () => () => html`<div class="page">
    ${header()}
    ${banner()}
    <main class=${['panes', { viewing: store.job.readonly && store.work.pristine }]}>
      <${SourcePane} />
      <${JobPane} />
    </main>
    ${dropOverlay(isOver.value)}
    ${toastView()}
    ${openDialog()}
    ${liveRegion()}
  </div>`,
}

const app = createApp(App)
app.config.errorHandler = (error) => { throw error }
store.start()
app.mount('#app')
