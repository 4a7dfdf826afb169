// What a job handed back: list, selection, previews, downloads.

import { computed, nextTick, onBeforeUnmount, reactive, ref, watch } from '../vendor/vue.runtime.esm-browser.prod.js'
import * as api from './api.js'
import { popover } from './controls.js'
import { bytes, extension, plural, visible } from './format.js'
import { highlight } from './highlight.js'
import { html } from './html.js'
import { icon } from './icons.js'
import { asText, hexRows, kindOf, parseTable } from './preview.js'
import * as store from './store.js'
import { job } from './store.js'
import { pack } from './tar.js'

const ICONS = { image: 'image', table: 'table', json: 'code', text: 'text', audio: 'sound', video: 'film', pdf: 'file' }

function iconOf(file) {
  const { kind } = kindOf(file.path)
  return kind === 'text' && !/^text|json|xml|script/.test(file.mime_type ?? file.type ?? '') ? 'file' : ICONS[kind]
}

const fileAddress = (file) => {
  // The server's own link keeps bytes that are not UTF-8; only its path is taken.
  const given = file.download_url ?? ''
  return given.startsWith(`/download/${job.id}/`) ? given : api.filePath(job.id, file.path)
}

async function sha256(blob) {
  if (!crypto.subtle) return null
  const digest = await crypto.subtle.digest('SHA-256', await blob.arrayBuffer())
  return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, '0')).join('')
}

const busy = reactive({ text: '', share: null, abort: null })

async function working(text, task) {
  if (busy.text) return
  busy.abort = new AbortController()
  Object.assign(busy, { text, share: null })
  try {
    await task(busy.abort.signal, (done, total) => { busy.share = total ? done / total : null })
  } catch (error) {
    if (error.name !== 'AbortError') store.say(error.message, { kind: 'error' })
  } finally {
    busy.text = ''
  }
}

async function fetchChecked(file, signal, onProgress) {
  const blob = await api.download(fileAddress(file), { signal, onProgress })
  const sum = await sha256(blob)
  if (sum && sum !== file.sha256) throw new Error(`${visible(file.path)} arrived damaged: its SHA-256 differs`)
  return { blob, verified: !!sum }
}

const downloadOne = (file) => working(`Downloading ${visible(file.name)}`, async (signal, onProgress) => {
  const { blob, verified } = await fetchChecked(file, signal, onProgress)
  store.save(blob, file.name)
  store.say(`${visible(file.name)} downloaded${verified ? ', SHA-256 checked' : ''}`)
  if (job.status === 'failed') store.refreshExpiry()
})

const archiveName = (format) => `${(job.title || 'outputs').replace(/\.[^.]*$/, '').replace(/[^\w.-]+/g, '_') || 'outputs'}-outputs.${format}`

const downloadSome = (files) => working(`Packing ${plural(files.length, 'file')}`, async (signal) => {
  const entries = []
  for (const file of files) {
    const { blob } = await fetchChecked(file, signal)
    entries.push({ path: file.path, blob, executable: false, mtime: Date.now() })
    busy.share = entries.length / files.length
  }
  store.save(await pack(entries, { signal }), archiveName('tar.gz'))
  store.say(`${plural(files.length, 'file')} downloaded; the job stays on the server`)
})

const downloadAll = (format, keep) => working('Downloading the archive', async (signal, onProgress) => {
  const blob = await api.download(api.archivePath(job.id, format, keep), { signal, onProgress })
  store.save(blob, archiveName(format))
  if (keep || job.readonly) store.say('Archive downloaded; the job stays on the server')
  else {
    store.delivered()
    store.say('Archive downloaded; the job is deleted from the server')
  }
})

// ── preview ──────────────────────────────────────────────────────────────────

const TooLarge = 'This file is too large to show here. Download it instead.'

const Preview = {
  props: { file: Object, jobId: String },
  setup(props) {
    const state = reactive({ kind: 'loading', url: '', text: '', bytes: null, table: null, note: '', cut: false, asText: false })
    let abort = null

    function release() {
      abort?.abort()
      if (state.url) URL.revokeObjectURL(state.url)
      state.url = ''
    }

    async function load(file) {
      release()
      abort = new AbortController()
      const { signal } = abort
      const { kind, mime, bytes: most } = kindOf(file.path)
      const whole = ['image', 'audio', 'video', 'pdf'].includes(kind)
      Object.assign(state, { kind: 'loading', text: '', bytes: null, table: null, note: '', cut: false })
      if (!file.size_bytes) return Object.assign(state, { kind: 'note', note: 'This file is empty.' })
      if (whole && file.size_bytes > most) return Object.assign(state, { kind: 'note', note: TooLarge })
      try {
        const given = await store.handedOver(file.path)
        if (given && !signal.aborted) return show(kind, mime, given, false)
        const response = await api.openFile(fileAddress(file), { signal, range: file.size_bytes > most ? most : null })
        const content = new Uint8Array(await response.arrayBuffer())
        if (signal.aborted) return
        show(kind, mime, content, content.length < file.size_bytes)
        if (job.status === 'failed') store.refreshExpiry()
      } catch (error) {
        if (error.name !== 'AbortError') Object.assign(state, { kind: 'note', note: `No preview: ${error.message}` })
      }
    }

    function show(kind, mime, content, cut) {
      state.cut = cut
      if (['image', 'audio', 'video', 'pdf'].includes(kind)) {
        // A blob of our own type: an SVG in <img> runs no scripts and loads nothing.
        Object.assign(state, { kind, url: URL.createObjectURL(new Blob([content], { type: mime })) })
        return
      }
      const text = asText(content, cut)
      if (text === null) return Object.assign(state, { kind: 'hex', bytes: content })
      if (kind === 'table') return Object.assign(state, { kind, text, table: parseTable(text, extension(props.file.path).toLowerCase() === 'tsv' ? { separator: '\t' } : {}) })
      if (kind === 'json' && !cut) {
        try {
          return Object.assign(state, { kind, text: JSON.stringify(JSON.parse(text), null, 2) })
        } catch { /* shown as it is */ }
      }
      Object.assign(state, { kind: 'text', text })
    }

    const failed = () => Object.assign(state, { kind: 'note', note: 'The browser cannot show this file.' })

    watch(() => [props.file.path, props.file.sha256, props.jobId], () => load(props.file), { immediate: true })
    onBeforeUnmount(release)

    const table = () => {
      const [head = [], ...body] = state.table.rows
      return html`<div class="preview-table" tabindex="0" role="region" aria-label="Table"><table>
        <thead><tr>${head.map((cell, i) => html`<th scope="col" class=${{ number: state.table.numeric[i] }}>${visible(cell)}</th>`)}</tr></thead>
        <tbody>${body.map((row) => html`<tr>${row.map((cell, i) => html`<td class=${{ number: state.table.numeric[i] }}>${visible(cell)}</td>`)}</tr>`)}</tbody>
      </table></div>`
    }

    const views = {
      loading: () => html`<p class="quiet-state">Loading…</p>`,
      note: () => html`<p class="quiet-state">${state.note}</p>`,
      image: () => html`<div class="preview-image"><img src=${state.url} alt=${visible(props.file.name)} onError=${failed} /></div>`,
      audio: () => html`<div class="preview-media"><audio controls src=${state.url} onError=${failed}></audio></div>`,
      video: () => html`<div class="preview-media"><video controls src=${state.url} onError=${failed}></video></div>`,
      pdf: () => html`<iframe class="preview-pdf" title=${visible(props.file.name)} src=${state.url}></iframe>`,
      table,
      json: () => html`<pre class="preview-text" tabindex="0">${highlight(state.text, 'json').map(({ text, kind }) => (kind ? html`<span class=${`t-${kind}`}>${text}</span>` : text))}</pre>`,
      text: () => html`<pre class="preview-text wrap" tabindex="0">${highlight(state.text, extension(props.file.path)).map(({ text, kind }) => (kind ? html`<span class=${`t-${kind}`}>${text}</span>` : text))}</pre>`,
      hex: () => html`<pre class="preview-text hex" tabindex="0">${hexRows(state.bytes).map((row) => html`<span class="hex-row"><i>${row.offset}</i><b>${row.hex.padEnd(47)}</b><span>${row.text}</span>${'\n'}</span>`)}</pre>`,
    }
    const cutNote = () => {
      if (state.kind === 'table' && (!state.table.complete || state.cut)) return `The first ${plural(state.table.rows.length, 'row')}`
      if (state.kind === 'hex' && props.file.size_bytes > 16 * 1024) return 'The first 16 KB'
      if (state.cut) return `The first ${bytes(new Blob([state.text]).size)} of ${bytes(props.file.size_bytes)}`
      return ''
    }

    return () => html`<div class="preview">
      <div class="preview-head"><b><bdi>${visible(props.file.path)}</bdi></b><span class="facts">${bytes(props.file.size_bytes)}</span>
        <button type="button" class="hash" title=${`SHA-256 ${props.file.sha256}: copy`} onClick=${() => store.copy(props.file.sha256, 'SHA-256')}><span>sha256</span> ${props.file.sha256?.slice(0, 12)}…</button>
      </div>
      <div class="preview-body">${views[state.kind]()}</div>
      ${cutNote() && html`<p class="preview-note">${cutNote()}; download it to see all</p>`}
    </div>`
  },
}

// ── the panel ────────────────────────────────────────────────────────────────

const DownloadAll = {
  props: { close: Function },
  setup(props) {
    const format = ref('tar.gz'), keep = ref(false)
    const go = (event) => {
      event.preventDefault()
      props.close()
      downloadAll(format.value, keep.value)
    }
    return () => html`<form class="download-form" onSubmit=${go}>
      <fieldset class="segmented"><legend class="offscreen">Format</legend>
        ${['tar.gz', 'zip', 'tar'].map((name) => html`<label><input type="radio" name="format" value=${name} checked=${format.value === name} onChange=${() => { format.value = name }} /><span>${name}</span></label>`)}
      </fieldset>
      ${!job.readonly && html`<label class="check"><input type="checkbox" checked=${keep.value} onChange=${(e) => { keep.value = e.target.checked }} /><span>Keep the job on the server</span></label>`}
      <p class="hint">${job.readonly ? 'You look at a shared job: nothing is deleted.'
        : keep.value ? 'The job stays until its time is up.'
        : 'Once the whole archive has arrived, the job, its log and its files are deleted from the server.'}</p>
      <button class=${['button', keep.value || job.readonly ? '' : 'primary']}>${icon('download')}<span>${keep.value || job.readonly ? 'Download' : 'Download and delete'}</span></button>
    </form>`
  },
}

export const Outputs = {
  setup() {
    const current = ref(''), chosen = reactive(new Set())
    const files = computed(() => job.outputs)
    const shown = computed(() => files.value.find((file) => file.path === current.value) ?? null)
    const total = computed(() => files.value.reduce((sum, file) => sum + file.size_bytes, 0))
    const skipped = computed(() => Object.entries(job.skippedOutputs))
    const isGone = computed(() => job.phase === 'gone')

    watch(files, (list) => {
      chosen.clear()
      const best = ['image', 'table', 'pdf', 'video', 'audio'].map((kind) => list.find((file) => kindOf(file.path).kind === kind)).find(Boolean)
      current.value = (best ?? list[0])?.path ?? ''
    }, { immediate: true })

    const toggle = (path) => { if (!chosen.delete(path)) chosen.add(path) }

    // On a phone the preview may be below the edge: who asks for it is led there.
    function lookAt(file) {
      current.value = file.path
      nextTick(() => document.querySelector('.preview')?.scrollIntoView({ block: 'nearest' }))
    }

    const directory = (file) => file?.path.slice(0, file.path.lastIndexOf('/') + 1) ?? ''

    /** Two and more of one directory stand below its name, which leaves their own all the room. */
    const rows = (list) => list.flatMap((file, i) => {
      const own = directory(file)
      const isFirst = own !== directory(list[i - 1])
      const isGrouped = own && (!isFirst || own === directory(list[i + 1]))
      const heading = isGrouped && isFirst ? [html`<li key=${`${own}:`} class="output-group" aria-hidden="true"><bdi>${visible(own)}</bdi></li>`] : []
      return [...heading, row(file, isGrouped)]
    })

    const row = (file, isGrouped) => {
      const slash = file.path.lastIndexOf('/') + 1
      return html`<li key=${file.path} class=${['output', { current: file.path === current.value, grouped: isGrouped }]}>
        <input type="checkbox" aria-label=${`Choose ${visible(file.path)}`} checked=${chosen.has(file.path)} onChange=${() => toggle(file.path)} disabled=${isGone.value} />
        <button type="button" class="row-main" aria-current=${file.path === current.value ? 'true' : null} title=${visible(file.path)} onClick=${() => lookAt(file)}>
          ${icon(iconOf(file))}
          <bdi class="path">${slash > 0 && html`<span class="dir">${visible(file.path.slice(0, slash))}</span>`}<span class="base">${visible(file.path.slice(slash))}</span></bdi>
          <small>${bytes(file.size_bytes)}</small>
        </button>
        <button type="button" class="row-action" aria-label=${`Download ${visible(file.path)}`} title="Download" disabled=${isGone.value} onClick=${() => downloadOne(file)}>${icon('download', 14)}</button>
      </li>`
    }

    return () => {
      const list = files.value
      if (!list.length && !skipped.value.length) {
        return html`<section class="outputs none" key="none" aria-label="Outputs"><p class="quiet-state">${
          { done: 'The job left no files behind.', gone: store.log.value.lines.length ? 'The log above is in this tab only.' : 'There are no files either.' }[job.phase] ?? 'Files that the job makes appear here.'}</p></section>`
      }
      const some = list.filter((file) => chosen.has(file.path))
      return html`<section class="outputs" key="files" aria-label="Outputs">
        <div class="bar slim">
          <h3>Outputs</h3><span class="facts">${plural(list.length, 'file')}, ${bytes(total.value)}</span>
          <div class="bar-end">
            ${busy.text ? html`<span class="facts" role="status">${busy.text}${busy.share != null && ` ${Math.round(busy.share * 100)}%`}</span>
                <button type="button" class="button quiet small" onClick=${() => busy.abort.abort()}>Cancel</button>`
              : isGone.value ? html`<span class="facts">no longer on the server</span>`
              : html`${some.length > 0 && html`<button type="button" class="button small" onClick=${() => (some.length === 1 ? downloadOne(some[0]) : downloadSome(some))}>${icon('download')}<span>${some.length} chosen</span></button>`}
                ${list.length > 0 && popover({ label: 'Download all', name: 'Download all', icon: 'download', kind: 'small' }, ({ close }) => html`<${DownloadAll} close=${close} />`)}`}
          </div>
        </div>
        <div class="outputs-body">
          <div class="output-list"><ul>${rows(list)}</ul>
            ${skipped.value.length > 0 && html`<div class="skipped"><h3>Not taken</h3><ul>${skipped.value.map(([path, why]) => html`<li class="row" key=${path}><span class="row-main"><bdi>${visible(path)}</bdi><small>${visible(why)}</small></span></li>`)}</ul></div>`}
          </div>
          ${shown.value && !isGone.value ? html`<${Preview} file=${shown.value} jobId=${job.id} />` : html`<div class="preview"><p class="quiet-state">${isGone.value ? 'The files are gone.' : 'Choose a file to look at it.'}</p></div>`}
        </div>
      </section>`
    }
  },
}
