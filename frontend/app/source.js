// The left pane: files, editor, settings, run bar.

import { computed, nextTick, reactive, ref, watch } from '../vendor/vue.runtime.esm-browser.prod.js'
import { ConfirmButton, menuItem, popover } from './controls.js'
import { languageName } from './examples.js'
import { amount, baseName, bytes, countdown, extension, plural, visible } from './format.js'
import { select } from './globs.js'
import { highlight } from './highlight.js'
import { html } from './html.js'
import { icon } from './icons.js'
import { looksSecret } from './intake.js'
import { LIMITS, quoteWord, splitWords } from './manifest.js'
import * as store from './store.js'
import { arm, balance, cancel, canRun, clock, defaults, edit, entrypoint, examples, form, formProblems, interpreter, job,
  manifest, maximum, openExample, openFile, paths, quota, refusal, run, secrets, server, sizeOf, totalSize, work } from './store.js'

export const ui = reactive({ tab: 'code' })

// ── editor ───────────────────────────────────────────────────────────────────

const LARGE_PASTE = 20_000 // characters
const INDENT = { py: '    ', go: '\t' }

const Editor = {
  setup() {
    const area = ref(null), scroller = ref(null)
    let tabLeaves = false // Esc, then Tab: the way out for those who have no mouse

    function replace(text, start, end, caret = start + text.length) {
      area.value.setSelectionRange(start, end)
      // execCommand keeps the browser's own undo history; the fallback loses it.
      if (!document.execCommand('insertText', false, text)) {
        area.value.setRangeText(text, start, end, 'end')
        edit(area.value.value)
      }
      area.value.setSelectionRange(caret, caret)
    }

    function indentLines(out) {
      const { value, selectionStart: start, selectionEnd: end } = area.value
      const unit = INDENT[extension(work.open)] ?? '  '
      const from = value.lastIndexOf('\n', start - 1) + 1
      const block = value.slice(from, end)
      const changed = out
        ? block.replace(/^(\t| {1,4})/gm, (lead) => (lead === '\t' ? '' : lead.slice(Math.min(lead.length, unit.length))))
        : block.replace(/^(?=.)/gm, unit)
      replace(changed, from, end)
      if (start !== end) area.value.setSelectionRange(from, from + changed.length)
    }

    function onKeydown(event) {
      const { value, selectionStart: start, selectionEnd: end } = area.value
      if (event.key === 'Escape') {
        tabLeaves = true
        store.spoken.value = 'Tab now leaves the editor'
        return
      }
      if (event.key === 'Tab' && !tabLeaves && !event.ctrlKey && !event.altKey) {
        event.preventDefault()
        if (event.shiftKey || value.slice(start, end).includes('\n')) indentLines(event.shiftKey)
        else replace(INDENT[extension(work.open)] ?? '  ', start, end)
      } else if (event.key === 'Enter' && !event.ctrlKey && !event.metaKey && !event.isComposing) {
        const line = value.slice(value.lastIndexOf('\n', start - 1) + 1, start)
        let lead = /^[ \t]*/.exec(line)[0]
        if (/[:{([]\s*$/.test(line)) lead += INDENT[extension(work.open)] ?? '  '
        if (lead) {
          event.preventDefault()
          replace(`\n${lead}`, start, end)
        }
      }
      if (event.key !== 'Shift') tabLeaves = false
    }

    // Chromium inserts line by line and counts the lines each time: minutes for a large program.
    // Set at once it takes none, at the price of Undo.
    function onPaste(event) {
      const text = event.clipboardData.getData('text/plain').replace(/\r\n?/g, '\n')
      if (text.length < LARGE_PASTE) return
      event.preventDefault()
      const { selectionStart: start, selectionEnd: end } = area.value
      area.value.setRangeText(text, start, end, 'end')
      edit(area.value.value)
    }

    const lineCount = computed(() => work.text.split('\n').length)
    const coloured = computed(() => highlight(work.text, extension(work.open)))
    const lit = ref(0)

    watch(() => work.goto, async (target) => {
      if (!target) return
      await nextTick()
      const lines = work.text.split('\n')
      const before = lines.slice(0, target.line - 1).join('\n').length + (target.line > 1 ? 1 : 0)
      area.value?.focus({ preventScroll: true })
      area.value?.setSelectionRange(before, before + (lines[target.line - 1]?.length ?? 0))
      const height = parseFloat(getComputedStyle(area.value).lineHeight)
      scroller.value.scrollTop = Math.max(0, (target.line - 6) * height)
      lit.value = target.line
    })
    watch(() => work.open, () => {
      lit.value = 0
      if (scroller.value) scroller.value.scrollTop = scroller.value.scrollLeft = 0
    })

    // One text, not an element for each line: a pasted program may have 50,000.
    const numbers = (from, to) => Array.from({ length: Math.max(0, to - from + 1) }, (_, i) => `${from + i}\n`).join('')
    const upToLit = computed(() => numbers(1, lit.value ? lit.value - 1 : lineCount.value))
    const afterLit = computed(() => (lit.value ? numbers(lit.value + 1, lineCount.value) : ''))

    return () => html`<div class="editor" ref=${scroller}>
      <div class="gutter" aria-hidden="true">${upToLit.value}${lit.value > 0 && html`<span class="lit">${`${lit.value}\n`}</span>`}${afterLit.value}</div>
      <div class="code">
        <pre aria-hidden="true">${coloured.value.map(({ text, kind }) => (kind ? html`<span class=${`t-${kind}`}>${text}</span>` : text))}${'\n'}</pre>
        <textarea ref=${area} value=${work.text} aria-label=${`Source of ${visible(work.open)}`} spellcheck="false" autocapitalize="off"
          autocomplete="off" autocorrect="off" wrap="off" onKeydown=${onKeydown} onPaste=${onPaste} onInput=${(event) => edit(event.target.value)}></textarea>
      </div>
    </div>`
  },
}

// ── file tree ────────────────────────────────────────────────────────────────

const MAX_ROWS = 600
let collator = null // loads the browser's tables, so only for who has something to sort
const byName = (a, b) => (collator ??= new Intl.Collator(undefined, { numeric: true })).compare(a.name, b.name) // f2 before f10

const Tree = {
  setup() {
    const closed = reactive(new Set())
    const opened = reactive(new Set())
    const isLarge = (node) => work.files.length > 250 || node.children.size > 16
    const isOpen = (node) => (isLarge(node) ? opened.has(node.path) : !closed.has(node.path))
    function toggle(node) {
      const set = isLarge(node) ? opened : closed
      if (!set.delete(node.path)) set.add(node.path)
    }
    const rows = computed(() => {
      work.version
      const root = { children: new Map() }
      for (const file of work.files) {
        let node = root, prefix = ''
        const parts = file.path.split('/')
        parts.forEach((name, i) => {
          prefix = prefix ? `${prefix}/${name}` : name
          if (!node.children.has(name)) node.children.set(name, { name, path: prefix, children: new Map(), file: null })
          node = node.children.get(name)
          if (i === parts.length - 1) node.file = file
        })
      }
      const list = []
      const visit = (node, depth) => {
        const isDirectory = (n) => n.children.size > 0 || n.file?.blob === null
        const order = [...node.children.values()].sort((a, b) => isDirectory(b) - isDirectory(a) || byName(a, b))
        for (const child of order) {
          const directory = isDirectory(child)
          list.push({ ...child, depth, directory, empty: directory && !child.children.size })
          if (directory && isOpen(child)) visit(child, depth + 1)
        }
      }
      visit(root, 0)
      return list
    })
    const list = ref(null)
    watch(() => work.open, () => nextTick(() => list.value?.querySelector('.row.current')?.scrollIntoView({ block: 'nearest' })), { immediate: true })
    const row = (item) => {
      const open = item.directory ? isOpen(item) : null
      return html`<li key=${item.path} class=${['row', { current: item.path === work.open, folder: item.directory }]} style=${{ '--depth': item.depth }}>
        <button type="button" class="row-main" aria-expanded=${item.directory && !item.empty ? open : null} aria-current=${item.path === work.open ? 'true' : null}
          title=${visible(item.path)} onClick=${() => (item.directory ? toggle(item) : openFile(item.path))}>
          ${item.directory ? icon(item.empty ? 'folder' : open ? 'down' : 'right', 12) : html`<span class="dot"></span>`}
          <bdi>${visible(item.name)}</bdi>
          ${item.path === entrypoint.value && html`<span class="tag">runs</span>`}
          ${item.empty && html`<span class="tag plain">empty</span>`}
          ${!item.directory && looksSecret(item.path) && html`<span class="warn" title="May hold a secret">${icon('warning', 12)}</span>`}
          ${!item.directory && html`<small>${bytes(sizeOf(item.file))}</small>`}
        </button>
        <button type="button" class="row-action" aria-label=${`Remove ${visible(item.path)}`} title="Remove" onClick=${() => store.removeFile(item.path)}>${icon('close', 12)}</button>
      </li>`
    }
    return () => html`<nav class="tree" aria-label="Files" ref=${list}>
      <ul>${rows.value.slice(0, MAX_ROWS).map(row)}</ul>
      ${rows.value.length > MAX_ROWS && html`<p class="hint">and ${plural(rows.value.length - MAX_ROWS, 'more entry').replace('entrys', 'entries')}: all of them run</p>`}
    </nav>`
  },
}

// ── toolbar ──────────────────────────────────────────────────────────────────

const picker = reactive({ folder: null, files: null })

const openPicker = (which) => picker[which]?.click()

const pickers = () => html`<div class="offscreen">
  <input type="file" aria-label="Choose a folder" tabindex="-1" webkitdirectory multiple ref=${(el) => { picker.folder = el }}
    onChange=${(event) => { store.takePicked(event.target.files, true); event.target.value = '' }} />
  <input type="file" aria-label="Choose files" tabindex="-1" multiple ref=${(el) => { picker.files = el }}
    onChange=${(event) => { store.takePicked(event.target.files, false); event.target.value = '' }} />
</div>`

const NewFile = {
  props: { close: Function },
  setup(props) {
    const name = ref('')
    const submit = (event) => {
      event.preventDefault()
      store.addFile(name.value)
      ui.tab = 'code'
      props.close()
    }
    return () => html`<form class="inline-form" onSubmit=${submit}>
      <label for="new-file">New file</label>
      <div class="field-row"><input id="new-file" class="input mono" placeholder="data/input.txt" value=${name.value} onInput=${(e) => { name.value = e.target.value }} />
      <button class="button" disabled=${!name.value.trim()}>Add</button></div>
    </form>`
  },
}

const isChanged = computed(() => {
  const found = store.build.value ? ['entrypoint', 'build', ...(form.outputs ? [] : ['outputs'])] : ['entrypoint']
  return Object.keys(manifest.value ?? {}).some((key) => !found.includes(key)) || form.entrypoint !== ''
})

const tab = (name, label, extra) => html`<button type="button" role="tab" id=${`tab-${name}`} aria-selected=${ui.tab === name} aria-controls="source-panel"
  tabindex=${ui.tab === name ? 0 : -1} onClick=${() => { ui.tab = name }}>${label}${extra}</button>`

function tabKeys(event) {
  if (!['ArrowLeft', 'ArrowRight'].includes(event.key)) return
  ui.tab = ui.tab === 'code' ? 'settings' : 'code'
  nextTick(() => document.getElementById(`tab-${ui.tab}`)?.focus())
}

const examplesMenu = ({ close }) => html`<div class="menu" role="group" aria-label="Examples">
  ${examples.value.map((example) => menuItem(example.title, () => { openExample(example); ui.tab = 'code'; close() }, { note: example.path }))}
</div>`

const openMenu = ({ close }) => html`<div class="menu" role="group" aria-label="Open">
  ${menuItem('Folder…', () => { close(); openPicker('folder') }, { icon: 'folder' })}
  ${menuItem('Files…', () => { close(); openPicker('files') }, { icon: 'file' })}
  ${menuItem('Paste', async () => { close(); pasteClipboard() }, { icon: 'copy' })}
  <hr />
  <${NewFile} close=${close} />
  <hr />
  ${menuItem('Empty the workspace', () => { store.clearWorkspace(); close() }, { icon: 'trash', disabled: !work.files.length })}
</div>`

async function pasteClipboard() {
  try {
    const text = await navigator.clipboard.readText()
    if (text.trim()) store.takePasted(text)
  } catch {
    store.say('The browser does not let this page read the clipboard: press Ctrl+V instead', { kind: 'warning' })
  }
}

// ── code panel ───────────────────────────────────────────────────────────────

const empty = () => html`<div class="dropzone">
  <div class="dropzone-art" aria-hidden="true">${icon('folder', 28)}</div>
  <h2>Drop a directory here</h2>
  <p>Folders, files, or paste a script with Ctrl+V. Nothing leaves this page before you press Run.</p>
  <div class="button-row">
    <button type="button" class="button" onClick=${() => openPicker('folder')}>${icon('folder')}<span>Choose folder</span></button>
    <button type="button" class="button" onClick=${() => openPicker('files')}>${icon('file')}<span>Choose files</span></button>
  </div>
  <button type="button" class="link" onClick=${() => openExample(examples.value[0])}>or start from an example</button>
</div>`

const noEditor = () => html`<div class="quiet-state">
  ${store.archive.value ? html`<p><b>${visible(baseName(work.open))}</b> is unpacked by the server. What runs says the job.json in it, the entrypoint in the settings, or a name like main.py or index.js.</p>`
    : work.openState === 'binary' ? html`<p>${visible(baseName(work.open))} is not text. It runs along as it is.</p>`
    : work.openState === 'large' ? html`<p>${visible(baseName(work.open))} is too large to edit here. It runs along as it is.</p>`
    : html`<p>Choose a file to look at it.</p>`}
</div>`

const statusLine = () => {
  const version = server.interpreters.find(({ name }) => name === interpreter.value)?.version
  return html`<div class="status-line">
    <span class="strong"><bdi>${visible(work.open || (work.root ?? ''))}</bdi></span>
    ${interpreter.value && html`<span>${version || languageName(interpreter.value)}</span>`}
    ${paths.value.length > 1 && html`<span>${plural(paths.value.length, 'file')}, ${bytes(totalSize.value)}</span>`}
    <span class="push muted wide-only">Drop a directory anywhere to run it</span>
  </div>`
}

// What would be done becomes what is said, and can be said otherwise.
function changeBuild() {
  Object.assign(form, store.build.value)
  ui.tab = 'settings'
  nextTick(() => document.getElementById('f-build')?.focus())
}

const notices = () => {
  const list = []
  if (job.readonly && work.pristine) {
    list.push(html`<div class="notice plain" key="shared">${icon('eye')}<p>The link shows the job, not its source. This is a workspace of your own.</p></div>`)
  }
  if (secrets.value.length) {
    list.push(html`<div class="notice warning" key="secrets" role="status">${icon('warning')}
      <p>${secrets.value.length === 1 ? html`<b>${visible(secrets.value[0])}</b> may hold a secret.` : html`<b>${plural(secrets.value.length, 'file')}</b> may hold secrets: ${secrets.value.slice(0, 3).map(visible).join(', ')}${secrets.value.length > 3 ? '…' : ''}`}</p>
      <button type="button" class="link" onClick=${() => [...secrets.value].forEach(store.removeFile)}>Remove</button></div>`)
  }
  if (store.build.value) {
    list.push(html`<div class="notice" key="build" role="status">${icon('gear')}<p><b>${visible(baseName(entrypoint.value))}</b> is compiled before it runs: <code>${visible(store.build.value.build)}</code></p>
      <button type="button" class="link" onClick=${changeBuild}>Change</button></div>`)
  }
  if (work.jobJson && paths.value.includes('job.json')) {
    const { text, bad } = work.jobJson
    list.push(html`<div class=${['notice', { warning: bad }]} key="jobjson" role="status">${icon(bad ? 'warning' : 'gear')}<p>${visible(text)}</p>
      ${bad ? work.open !== 'job.json' && html`<button type="button" class="link" onClick=${() => openFile('job.json')}>Open</button>`
        : html`<button type="button" class="link" onClick=${() => { ui.tab = 'settings' }}>Look</button>`}</div>`)
  }
  if (work.skipped.length) {
    list.push(html`<div class="notice plain" key="skipped">${icon('folder')}
      <p>Left out: ${work.skipped.map((item, i) => html`${i > 0 && ', '}<bdi class="left-out">${visible(item.path)}</bdi> <button type="button" class="link" onClick=${() => store.includeSkipped(item)} aria-label=${`Include ${visible(item.path)}`}>include</button>`)}</p></div>`)
  }
  if (store.uploadProblem.value) list.push(html`<div class="notice bad" key="size" role="alert">${icon('warning')}<p>${store.uploadProblem.value}</p></div>`)
  return list
}

const codePanel = () => {
  if (work.reading) return html`<div class="quiet-state" role="status"><p>Reading… ${work.reading > 1 && plural(work.reading, 'file')}</p></div>`
  if (!work.files.length && !work.skipped.length) return empty()
  const hasTree = work.files.length > 1
  return html`<div class="stack">
    ${notices()}
    <div class=${['workspace', { split: hasTree }]}>
      ${hasTree && html`<${Tree} />`}
      ${work.openState === 'text' ? html`<${Editor} />` : noEditor()}
    </div>
    ${statusLine()}
  </div>`
}

// ── settings ─────────────────────────────────────────────────────────────────

const set = (key) => (event) => { form[key] = event.target.value }

const problemOf = (key) => formProblems.value[key] || (refusal.value?.field === key ? refusal.value.message : '')

const field = (key, label, control, hint) => html`<div class=${['field', { bad: problemOf(key) }]}>
  <label for=${`f-${key}`}>${label}</label>
  ${control}
  ${problemOf(key) ? html`<p class="problem" id=${`p-${key}`}>${problemOf(key)}</p>` : hint && html`<p class="hint">${hint}</p>`}
</div>`

const textInput = (key, options = {}) => html`<input id=${`f-${key}`} class="input mono" spellcheck="false" autocomplete="off" value=${form[key]} onInput=${set(key)}
  aria-invalid=${!!problemOf(key)} aria-describedby=${problemOf(key) ? `p-${key}` : null} ...${options} />`

const selectInput = (key, options) => html`<span class="select"><select id=${`f-${key}`} value=${form[key]} onChange=${set(key)}>
  ${options.map(([value, label]) => html`<option value=${value} selected=${form[key] === value}>${label}</option>`)}
</select>${icon('down', 12)}</span>`

const envEditor = () => html`<fieldset class=${['field', { bad: problemOf('env') }]}>
  <legend>Environment variables</legend>
  ${form.env.map((pair, i) => html`<div class="field-row" key=${i}>
    <input class="input mono" aria-label=${`Name of variable ${i + 1}`} placeholder="NAME" spellcheck="false" value=${pair.name} onInput=${(e) => { pair.name = e.target.value }} />
    <input class="input mono" aria-label=${`Value of variable ${i + 1}`} placeholder="value" spellcheck="false" value=${pair.value} onInput=${(e) => { pair.value = e.target.value }} />
    <button type="button" class="button quiet square" aria-label=${`Remove variable ${i + 1}`} onClick=${() => form.env.splice(i, 1)}>${icon('close', 12)}</button>
  </div>`)}
  <button type="button" class="link" onClick=${() => form.env.push({ name: '', value: '' })}>Add a variable</button>
  ${problemOf('env') && html`<p class="problem">${problemOf('env')}</p>`}
</fieldset>`

const limitRow = ({ key, label, unit, min, step }) => {
  const top = maximum.value?.[key] ?? null, standard = defaults.value?.[key] ?? null
  const value = form[key] ?? standard ?? min
  // A logarithmic slider: the first seconds and megabytes matter as much as the last.
  const scale = top > min ? Math.log(top / min) : 1
  const position = Math.round((Math.log(Math.max(min, value) / min) / scale) * 200)
  const fromSlider = (event) => {
    const exact = min * Math.exp((event.target.value / 200) * scale)
    const rounded = exact < 20 && step === 1 ? Math.round(exact) : Number(exact.toPrecision(2))
    form[key] = Math.min(top, Math.max(min, Math.round(rounded / step) * step))
  }
  const fixed = top != null && top <= min
  return html`<div class=${['limit', { bad: problemOf(key), changed: form[key] != null && form[key] !== '' }]} key=${key}>
    <label for=${`f-${key}`}>${label}</label>
    <input type="range" min="0" max="200" value=${position} aria-label=${`${label}, slider`} disabled=${top == null || fixed} onInput=${fromSlider} style=${{ '--fill': `${Math.min(100, position / 2)}%` }} />
    <span class="number"><input id=${`f-${key}`} class="input mono" type="number" min=${min} max=${top} step="any" inputmode="numeric" value=${value}
      aria-invalid=${!!problemOf(key)} onInput=${(e) => { form[key] = e.target.value === '' ? null : Number(e.target.value) }} /><span class="unit">${unit}</span></span>
    <span class="most">of ${top == null ? '–' : amount(top)}</span>
    ${problemOf(key) && html`<p class="problem">${problemOf(key)}</p>`}
  </div>`
}

const outputsPreview = computed(() => {
  const patterns = form.outputs.split('\n').map((line) => line.trim()).filter(Boolean)
  const effective = patterns.length ? patterns : ['*']
  const made = job.outputs.map((file) => file.path)
  return { patterns, inputs: patterns.length ? select(effective, paths.value) : [], made: select(effective, made), total: made.length }
})

const outputsHint = () => {
  const { patterns, inputs, made, total } = outputsPreview.value
  const list = (names) => html`<span class="names">${names.slice(0, 4).map((name) => html`<code><bdi>${visible(name)}</bdi></code>`)}${names.length > 4 && html`<span>and ${names.length - 4} more</span>`}</span>`
  if (!patterns.length) return html`<p class="hint">Everything that the job makes or changes comes back. One pattern a line: <code>*.csv</code>, <code>plots/**</code>, <code>!*.tmp</code></p>`
  return html`<div class="hint" role="status">
    <p>${inputs.length ? html`Matches ${plural(inputs.length, 'file')} of yours, which come back if the job changes them ${list(inputs)}` : 'Matches none of your files, only new ones'}</p>
    ${total > 0 && html`<p>Of the last run: ${made.length} of ${plural(total, 'output')} ${list(made)}</p>`}
  </div>`
}

const settingsPanel = () => html`<form class="settings" onSubmit=${(event) => event.preventDefault()}>
  <section>
    <h2>Program</h2>
    <div class="two">
      ${field('entrypoint', 'Entrypoint', textInput('entrypoint', { placeholder: entrypoint.value || 'main.py', list: 'known-files' }), 'The file that is started')}
      ${field('interpreter', 'Interpreter', selectInput('interpreter', [['', interpreter.value && !form.interpreter ? `Automatic (${interpreter.value})` : 'Automatic'], ...server.interpreters.map(({ name, version }) => [name, version && version !== name ? `${name} – ${version}` : name])]))}
    </div>
    <datalist id="known-files">${paths.value.slice(0, 200).map((path) => html`<option value=${path}></option>`)}</datalist>
    ${field('args', 'Arguments', textInput('args', { placeholder: `--size 3 'two words'` }))}
    ${field('stdin', 'Standard input', html`<textarea id="f-stdin" class="input mono" rows="2" spellcheck="false" value=${form.stdin} onInput=${set('stdin')}></textarea>`)}
    ${envEditor()}
  </section>
  <section>
    <h2>Environment</h2>
    <div class="two">
      ${field('environment', 'Packages', selectInput('environment', [['', 'Default'], ...server.environments.filter(({ name }) => name !== 'default').map(({ name, description }) => [name, description ? `${name} – ${description}` : name])]), packagesHint())}
      ${field('profile', 'System calls', selectInput('profile', [['', 'Default'], ['compute', 'Compute only']]), 'Compute only: no subprocesses, no sockets')}
    </div>
    <div class="two">
      ${field('requirements', 'Requirements file', textInput('requirements', { placeholder: 'requirements.txt' }))}
      ${field('build', 'Build command', textInput('build', { placeholder: 'gcc -O2 main.c -o main' }), 'Runs first, with the same limits')}
    </div>
  </section>
  <section>
    <h2>Outputs</h2>
    <div class="field"><label for="f-outputs">Patterns</label>
      <textarea id="f-outputs" class="input mono" rows="3" spellcheck="false" placeholder="*" value=${form.outputs} onInput=${set('outputs')}></textarea>
      ${outputsHint()}
    </div>
  </section>
  <section>
    <h2>Limits</h2>
    <div class="limits">${LIMITS.map(limitRow)}</div>
  </section>
  <section class="settings-end">
    <${ConfirmButton} label="Reset all settings" sure="Press again to reset" icon="history" onConfirm=${() => { Object.assign(form, { entrypoint: '', interpreter: '', args: '', stdin: '', env: [], outputs: '', requirements: '', environment: '', profile: '', build: '', stated: [] }); LIMITS.forEach(({ key }) => { form[key] = null }) }} />
  </section>
</form>`

const packagesHint = () => {
  const chosen = server.environments.find(({ name }) => name === (form.environment || 'default'))
  const names = Object.entries(chosen?.packages ?? {})
  if (!names.length) return 'The standard library'
  return names.slice(0, 6).map(([name, version]) => `${name} ${version}`).join(', ') + (names.length > 6 ? `, ${names.length - 6} more` : '')
}

// ── run bar ──────────────────────────────────────────────────────────────────

const command = computed(() => {
  if (!entrypoint.value) return ''
  let args
  try {
    args = splitWords(form.args)
  } catch {
    return ''
  }
  const first = store.build.value?.build ?? form.build.trim()
  const made = store.build.value?.entrypoint ?? entrypoint.value
  const program = first && !interpreter.value ? `./${made}` : made
  return [first && `${visible(first)} &&`, interpreter.value, visible(quoteWord(program)), ...args.map((word) => visible(quoteWord(word)))].filter(Boolean).join(' ')
})

const cost = () => {
  const most = form.cpu_seconds ?? defaults.value?.cpu_seconds
  if (most == null) return '\u00a0'
  const q = quota.value
  if (!q?.enforced) return `Up to ${amount(most)} CPU-seconds`
  const left = balance.value ?? q.available
  const refill = (q.limit - left) / (q.limit / 60)
  const state = left >= q.limit - 0.05 ? `you have ${amount(left)}`
    : `you have ${amount(Math.max(0, left))}, full in ${countdown(refill)}`
  return `Up to ${amount(most)} CPU-seconds; ${state}`
}

const refused = () => {
  // The time to wait is told by a button that counts.
  const { message, until, armed, status, cure, field: name } = refusal.value
  const left = until ? Math.max(0, (until - clock.value) / 1000) : 0
  return html`<div class=${['notice', status === 429 ? 'warning' : 'bad', 'refusal']} role="alert">
    ${icon(status === 429 ? 'clock' : status === 0 ? 'offline' : 'warning')}
    <p><b>${{ 429: 'Not yet', 413: 'Too large', 0: 'Not sent' }[status] ?? 'Not accepted'}.</b> ${visible(until ? message.replace(/; try again in .*$/, '') : message).replace(/^./, (c) => c.toUpperCase())}</p>
    ${until > 0 && (left > 0
      ? armed ? html`<span class="count-down">runs in ${countdown(left)}</span>`
        : html`<button type="button" class="button small" onClick=${arm}>Run in ${countdown(left)}</button>`
      : html`<span class="count-down">ready again</span>`)}
    ${cure && html`<button type="button" class="button small" onClick=${store.takeCure}>Use it and run</button>`}
    ${name && !cure && html`<button type="button" class="link" onClick=${() => showField(name)}>Show</button>`}
    <button type="button" class="button quiet square" aria-label="Dismiss" onClick=${() => { refusal.value = null }}>${icon('close', 12)}</button>
  </div>`
}

const isMac = /Mac|iP(hone|ad)/.test(navigator.platform)

// One button that is always there, so that who pressed it keeps the focus. The second click
// of a double one, or a key that is held, meant the first.
const press = (event) => {
  if (!job.active) run()
  else if (event.detail < 2 && !isEnding()) cancel()
}
const held = (event) => { if (event.repeat) event.preventDefault() }
const isEnding = () => job.cancelling || job.phase === 'collecting'

// Not disabled while a job ends: a disabled button loses the focus. New words are new elements,
// or the browser would count them as moved.
const runButton = () => (job.active
  ? html`<button type="button" class="button large run" onClick=${press} onKeydown=${held} disabled=${job.readonly} aria-disabled=${isEnding() ? 'true' : null}
      aria-keyshortcuts="Control+. Meta+."><span class="label" key="stop">${icon('stop')}<span>${job.cancelling ? 'Stopping' : 'Cancel'}</span></span></button>`
  : html`<button type="button" class="button primary large run" onClick=${press} onKeydown=${held} disabled=${!canRun.value}
      aria-keyshortcuts="Control+Enter Meta+Enter"><span class="label" key="run">${icon('play')}<span>Run</span><kbd>${isMac ? '⌘' : 'Ctrl'} ↵</kbd></span></button>`)

function showField(name) {
  ui.tab = 'settings'
  nextTick(() => document.getElementById(`f-${name}`)?.focus())
}

const runBar = () => {
  const [problem] = Object.entries(formProblems.value)
  return html`<div class="run-bar">
  ${refusal.value && refused()}
  <div class="run-row">
    <div class="run-facts">
      <code class="command">${problem ? html`<button type="button" class="link problem" onClick=${() => showField(problem[0])}>${problem[1]}</button>` : command.value ? html`<span class="prompt" aria-hidden="true">$</span> ${command.value}` : html`<span class="muted">${store.archive.value ? `What ${visible(store.archive.value.path)} says` : paths.value.length ? 'Open the file that shall run' : 'Nothing to run yet'}</span>`}</code>
      <p class="cost">${cost()}</p>
    </div>
    ${runButton()}
  </div>
</div>`
}

export const SourcePane = {
  setup() {
    return () => html`<section class="pane source" aria-label="Source">
      <div class="bar">
        <div class="tabs" role="tablist" aria-label="Source" onKeydown=${tabKeys}>
          ${tab('code', 'Code', paths.value.length > 1 && html`<span class="count">${paths.value.length}</span>`)}
          ${tab('settings', 'Settings', Object.keys(formProblems.value).length
            ? html`<span class="mark bad" title="Something needs attention"></span>`
            : isChanged.value && html`<span class="mark" title="Changed from the defaults"></span>`)}
        </div>
        <div class="bar-end">
          ${popover({ label: 'Examples', name: 'Examples' }, examplesMenu)}
          ${popover({ label: 'Open', name: 'Open files' }, openMenu)}
        </div>
      </div>
      <div class="pane-body" role="tabpanel" id="source-panel" aria-labelledby=${`tab-${ui.tab}`}>
        ${ui.tab === 'code' ? codePanel() : settingsPanel()}
      </div>
      ${runBar()}
      ${pickers()}
    </section>`
  },
}
