// The live log: a virtual list, so that 100,000 lines cost as much as the fifty on the screen.

import { computed, nextTick, onBeforeUnmount, onMounted, reactive, ref, watch } from '../vendor/vue.runtime.esm-browser.prod.js'
import * as api from './api.js'
import { count, plural } from './format.js'
import { html } from './html.js'
import { icon } from './icons.js'
import { frames, pieces } from './log.js'
import { readStorage, writeStorage } from './store.js'
import * as store from './store.js'
import { ui } from './source.js'

const OVERSCAN = 12
const HAND_MS = 700 // a flick goes on after the finger has left
const LABELS = { stderr: 'err', system: 'sys', gap: '···', stdout: '' }
const COMMAND = /Mac|iP(hone|ad)/.test(navigator.platform) ? '⌘' : 'Ctrl'
const HINTS = [['Run', COMMAND, '↵'], ['Stop', COMMAND, '.'], ['Search the log', '/'], ['All keys', '?']]

/** Columns that a text takes: East Asian wide characters take two, a tab goes on to the next eighth. */
function columns(text) {
  let wide = 0
  for (let tab = text.indexOf('\t'); tab >= 0; tab = text.indexOf('\t', tab + 1)) wide += 7 - ((tab + wide) % 8)
  if (/[^\x00-\u02ff]/.test(text)) for (const c of text) if (/[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\u{1f300}-\u{1faff}\u{20000}-\u{3fffd}]/u.test(c)) wide++
  return text.length + wide
}

export const LogView = {
  setup() {
    const scroller = ref(null), probe = ref(null), searchBox = ref(null)
    const options = reactive({ wrap: readStorage('sandrun.wrap') !== 'no', stamps: false, searching: false, query: '', hit: 0, follow: true })
    const view = reactive({ top: 0, height: 400, row: 20, columns: 80, width: 0 })
    let lastTop = 0, lastRange = 0, heldAt = -Infinity

    const log = computed(() => (store.logVersion.value, store.log.value))
    const total = computed(() => (store.logVersion.value, store.log.value.lines.length))

    // Wrapped lines differ in height: running sums, recomputed from where they are stale.
    let sums = [0], sumsOf = null, sumsColumns = 0
    function offsets() {
      const { lines } = store.log.value
      if (sumsOf !== store.log.value || sumsColumns !== view.columns || sums.length > lines.length + 1) sums = [0]
      sumsOf = store.log.value
      sumsColumns = view.columns
      // The last lines may still have grown (a progress bar), so they are done again.
      sums.length = Math.max(1, sums.length - 4)
      for (let i = sums.length - 1; i < lines.length; i++) {
        sums.push(sums[i] + Math.max(1, Math.ceil(columns(lines[i].text) / view.columns)))
      }
      return sums
    }

    const range = computed(() => {
      const lines = total.value
      const first = Math.floor(view.top / view.row), visibleRows = Math.ceil(view.height / view.row)
      if (!options.wrap) {
        const start = Math.max(0, Math.min(first, lines) - OVERSCAN)
        return { start, end: Math.min(lines, first + visibleRows + OVERSCAN), top: start, rows: lines }
      }
      const at = offsets()
      let low = 0, high = lines
      while (low < high) {
        const middle = (low + high) >> 1
        if (at[middle + 1] <= first) low = middle + 1
        else high = middle
      }
      const start = Math.max(0, low - OVERSCAN)
      let end = low
      while (end < lines && at[end] < first + visibleRows) end++
      return { start, end: Math.min(lines, end + OVERSCAN), top: at[start], rows: at[lines] }
    })

    const matches = computed(() => (options.searching && options.query ? log.value.search(options.query) : []))
    const hitLine = computed(() => matches.value[Math.min(options.hit, matches.value.length - 1)] ?? -1)
    const known = computed(() => new Set(store.paths.value))

    function measure() {
      if (!probe.value || !scroller.value) return
      const box = probe.value.getBoundingClientRect()
      view.row = box.height || 20
      view.height = scroller.value.clientHeight
      view.width = scroller.value.clientWidth
      const text = scroller.value.querySelector('.log-line .text')
      if (text && options.wrap) view.columns = Math.max(1, Math.floor(text.getBoundingClientRect().width / (box.width / 10) + 0.01))
    }

    function toTail() {
      const element = scroller.value
      if (!element || !total.value) return
      element.scrollTop = element.scrollHeight
      lastTop = view.top = element.scrollTop
      lastRange = element.scrollHeight - element.clientHeight
    }

    // A wheel, a finger, a key or the scroll bar: what moves next is moved by a hand.
    const onHand = () => { heldAt = performance.now() }

    // The browser moves the log by itself where its end comes nearer (lines that wrap less, a
    // larger window). By the time that this is told, more lines may have come below.
    function onScroll() {
      const element = scroller.value
      const top = element.scrollTop, reach = element.scrollHeight - element.clientHeight
      const isByHand = reach === lastRange || performance.now() - heldAt < HAND_MS
      if (reach - top < 8) options.follow = true
      else if (top < lastTop - 1 && isByHand) options.follow = false
      else if (options.follow && !isByHand) return toTail()
      lastTop = view.top = top
      lastRange = reach
    }

    function toLine(index) {
      const row = options.wrap ? offsets()[index] : index
      options.follow = false
      scroller.value.scrollTop = Math.max(0, row * view.row - view.height / 3)
    }

    // Whatever moves the end (lines, wrapping, the window's size): who follows stays there.
    // Three getters, not one list: a list is new each time, and scrolling would set this off for ever.
    watch([() => range.value.rows, () => view.height, () => view.row], () => {
      if (options.follow) toTail()
    }, { flush: 'post' })
    watch(() => store.log.value, () => { options.follow = true; lastTop = lastRange = view.top = 0 })
    watch(() => [options.stamps, options.wrap, total.value > 0, String(total.value).length > 4], () => nextTick(measure))
    watch(() => options.wrap, (on) => writeStorage('sandrun.wrap', on ? null : 'no'))
    watch(() => options.query, () => {
      options.hit = 0
      if (matches.value.length) {
        const from = range.value.start + OVERSCAN
        options.hit = Math.max(0, matches.value.findIndex((line) => line >= from))
        toLine(hitLine.value)
      }
    })

    const observer = new ResizeObserver(measure) // the first time when everything is laid out anyway
    onMounted(() => observer.observe(scroller.value))
    onBeforeUnmount(() => observer.disconnect())

    function step(by) {
      const found = matches.value.length
      if (!found) return
      options.hit = (options.hit + by + found) % found
      toLine(hitLine.value)
    }

    async function toggleSearch() {
      options.searching = !options.searching
      await nextTick()
      if (options.searching) searchBox.value?.focus()
      else scroller.value?.focus()
    }

    function onSearchKey(event) {
      if (event.key === 'Enter') {
        event.preventDefault()
        step(event.shiftKey ? -1 : 1)
      } else if (event.key === 'Escape') {
        event.stopPropagation()
        toggleSearch()
      }
    }

    function onLogKey(event) {
      onHand()
      if (event.key === '/' || ((event.ctrlKey || event.metaKey) && event.key === 'f')) {
        event.preventDefault()
        if (!options.searching) toggleSearch()
        else searchBox.value?.focus()
      } else if (event.key === 'End') options.follow = true
    }

    async function download() {
      try {
        store.save(await api.rawLog(store.job.id), `${(store.job.title || 'job').replace(/[^\w.-]+/g, '_')}.log`)
      } catch {
        // Deleted there already: what is on the screen is still here.
        store.save(new Blob([store.log.value.text()], { type: 'text/plain' }), 'job.log')
      }
    }

    const openPlace = ({ path, line }) => {
      ui.tab = 'code'
      store.openFile(path, line)
    }

    const part = ({ text, style, hit, frame }) => {
      const shown = style.class || style.style || hit
        ? html`<span class=${[style.class, { hit }]} style=${style.style}>${text}</span>` : text
      return frame ? html`<button type="button" class="frame" onClick=${() => openPlace(frame)}>${shown}</button>` : shown
    }

    const line = (index) => {
      const item = store.log.value.lines[index]
      const query = options.searching ? options.query.toLowerCase() : ''
      const places = item.stream === 'stdout' && !/\bat |File "/.test(item.text) ? [] : frames(item.text, known.value)
      const simple = !item.spans && !query && !places.length
      return html`<div key=${index + store.log.value.cut} class=${['log-line', item.stream, { found: index === hitLine.value }]}>
        <span class="n" aria-hidden="true">${item.continued ? '' : index + 1 + store.log.value.cut}</span>
        ${options.stamps && html`<span class="stamp">${item.t.toFixed(3)}</span>`}
        <span class="label">${LABELS[item.stream] ?? item.stream}</span>
        <span class="text">${simple ? item.text : pieces(item, query, places).map(part)}${!item.text && '\u200b'}</span>
      </div>`
    }

    const tool = (name, label, pressed, run, disabled = false) => html`<button type="button" class="button quiet square" aria-label=${label} title=${label}
      aria-pressed=${pressed} disabled=${disabled} onClick=${run}>${icon(name)}</button>`

    const link = () => {
      if (!store.job.active || !store.job.id) return null
      return store.job.link === 'reconnecting' || store.server.reach === 'offline'
        ? html`<span class="live off" role="status"><i></i>reconnecting</span>`
        : html`<span class="live"><i></i>live</span>`
    }

    const hints = () => html`<dl class="hints">${HINTS.map(([what, ...keys]) => html`<div key=${what}>
      <dt>${what}</dt><dd>${keys.map((key) => html`<kbd>${key}</kbd>`)}</dd></div>`)}</dl>`

    const emptyText = () => {
      const { phase } = store.job
      if (phase === 'none') return 'The log of the next run appears here, live.'
      if (phase === 'gone' && !total.value) return 'Nothing is left of this job: it was deleted, or its time was up. No copy is kept anywhere.'
      if (['dependency_error', 'upload_error'].includes(store.job.exit_reason)) return 'It was never started, so it printed nothing.'
      return store.job.active ? 'Waiting for the first line…' : 'The job printed nothing.'
    }

    return () => {
      const { start, end, top, rows } = range.value
      const visibleLines = []
      for (let i = start; i < end; i++) visibleLines.push(line(i))
      const isEmpty = total.value === 0
      // The end of a long log hangs from the end: whatever a strange font makes of a line, it is the last.
      const place = start > 0 && end === total.value ? { inset: 'auto 0 8px' } : { transform: `translateY(${top * view.row}px)` }
      return html`<section class="log" aria-label="Log" style=${{ '--lines': isEmpty ? 2 : rows }}>
        <div class="bar slim">
          <h3>Log</h3>
          <span class="facts">${!isEmpty && html`${plural(total.value, 'line')}${log.value.stderrLines > 0 && html`<span class="err-count">${count(log.value.stderrLines)} on stderr</span>`}`}</span>
          ${link()}
          <div class="bar-end">
            ${options.searching && html`<div class="search" role="search">
              <input ref=${searchBox} class="input" type="search" aria-label="Search the log" placeholder="Search" value=${options.query}
                onInput=${(e) => { options.query = e.target.value }} onKeydown=${onSearchKey} />
              <span class="facts" role="status">${options.query ? (matches.value.length ? `${Math.min(options.hit, matches.value.length - 1) + 1} of ${count(matches.value.length)}${matches.value.length >= 10_000 ? '+' : ''}` : 'none') : ''}</span>
              <button type="button" class="button quiet square" aria-label="Previous match" onClick=${() => step(-1)} disabled=${!matches.value.length}>${icon('up', 14)}</button>
              <button type="button" class="button quiet square" aria-label="Next match" onClick=${() => step(1)} disabled=${!matches.value.length}>${icon('down', 14)}</button>
            </div>`}
            ${tool('search', options.searching ? 'Close search' : 'Search the log', options.searching, toggleSearch)}
            ${tool('wrap', 'Wrap long lines', options.wrap, () => { options.wrap = !options.wrap })}
            ${tool('clock', 'Seconds since the start', options.stamps, () => { options.stamps = !options.stamps })}
            ${tool('copy', 'Copy the log', null, () => store.copy(store.log.value.text(), 'Log'), isEmpty)}
            ${tool('download', 'Download the log', null, download, isEmpty)}
          </div>
        </div>
        <div class="log-frame">
          <div ref=${scroller} class=${['log-scroll', { wrap: options.wrap }]} role="log" aria-live="off" aria-label="Output of the job" tabindex="0" onScroll=${onScroll} onKeydown=${onLogKey}
            onWheelPassive=${onHand} onPointerdown=${onHand} onPointermove=${(event) => event.buttons && onHand()} onTouchmovePassive=${onHand}>
            <span ref=${probe} class="probe" aria-hidden="true">0123456789</span>
            ${isEmpty ? html`<div class="log-empty"><p key=${emptyText()}>${emptyText()}</p>${store.job.phase === 'none' && hints()}</div>`
              : html`<div class="log-all" style=${{ height: `${rows * view.row}px`, '--digits': Math.max(4, String(total.value).length) }}>
                  <div class="log-window" style=${place}>${visibleLines}</div>
                </div>`}
          </div>
          ${!options.follow && !isEmpty && html`<button type="button" class="button to-tail" onClick=${() => { options.follow = true; toTail() }}>${icon('down', 12)}<span>${store.job.active ? 'Follow' : 'To the end'}</span></button>`}
        </div>
      </section>`
    }
  },
}
