// Log records → lines for the screen: ANSI styles, carriage returns, order kept. Pure.
//
// Both streams share one list, in the order in which lines began; each stream has
// one open line, so that a half-written stdout line is not torn by stderr.

import { count } from './format.js'

const TOKEN = /\x1b\[([0-9;:?<=>]*)[ -/]*([@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[()*+][0-9A-Za-z]|\x1b[ -~]|\r\n|\n|\r|\x08/g
const UNFINISHED = /\x1b(?:\[[0-9;:?<=> -/]*|\][^\x07\x1b]{0,512}\x1b?)?$/
const CONTROL = /[\x00-\x08\x0b-\x1f\x7f\x80-\x9f]/g
const MAX_LINE = 8192 // longer lines go on in a row of their own: one row must stay cheap to paint
const MAX_LINES = 1_000_000 // 20 px each: browsers stop laying out at about 33 million px

const show = (c) => {
  const code = c.charCodeAt(0)
  return code === 0x7f ? '\u2421' : code >= 0x80 ? '\ufffd' : String.fromCharCode(0x2400 + code)
}

const plainStyle = () => ({ fg: null, bg: null, bold: false, dim: false, italic: false, underline: false, inverse: false, strike: false, key: null })

function cube(n) {
  if (n < 16) return n
  if (n > 231) return gray(8 + (n - 232) * 10)
  const level = (v) => (v ? 55 + v * 40 : 0)
  n -= 16
  return `rgb(${level(Math.floor(n / 36))} ${level(Math.floor(n / 6) % 6)} ${level(n % 6)})`
}
const gray = (v) => `rgb(${v} ${v} ${v})`

function extended(codes, at) {
  // 38;5;N or 38;2;R;G;B. Returns [colour, how many codes it took].
  if (codes[at + 1] === 5) return [cube(Math.min(255, codes[at + 2] || 0)), 3]
  if (codes[at + 1] === 2) {
    const [r, g, b] = [2, 3, 4].map((i) => Math.min(255, codes[at + i] || 0))
    return [`rgb(${r} ${g} ${b})`, 5]
  }
  return [null, 1]
}

function applySgr(style, parameters) {
  const codes = parameters.split(/[;:]/).map((n) => parseInt(n || '0', 10))
  for (let i = 0; i < codes.length; i++) {
    const code = codes[i]
    if (code === 0) Object.assign(style, plainStyle())
    else if (code === 1) style.bold = true
    else if (code === 2) style.dim = true
    else if (code === 3) style.italic = true
    else if (code === 4) style.underline = true
    else if (code === 7) style.inverse = true
    else if (code === 9) style.strike = true
    else if (code === 22) style.bold = style.dim = false
    else if (code === 23) style.italic = false
    else if (code === 24) style.underline = false
    else if (code === 27) style.inverse = false
    else if (code === 29) style.strike = false
    else if (code >= 30 && code <= 37) style.fg = code - 30
    else if (code >= 90 && code <= 97) style.fg = code - 90 + 8
    else if (code >= 40 && code <= 47) style.bg = code - 40
    else if (code >= 100 && code <= 107) style.bg = code - 100 + 8
    else if (code === 39) style.fg = null
    else if (code === 49) style.bg = null
    else if (code === 38 || code === 48) {
      const [colour, used] = extended(codes, i)
      style[code === 38 ? 'fg' : 'bg'] = colour
      i += used - 1
    }
  }
  style.key = null
}

/** The 16 colours are classes (they follow the theme); others are exact, as far as they can be read. */
function rendered(style) {
  if (style.key) return style.key
  const classes = [], css = {}
  const paint = (value, kind) => {
    if (typeof value === 'number') classes.push(`${kind}${value}`)
    else if (value) {
      classes.push(`${kind}-exact`)
      css[kind === 'fg' ? '--ink' : '--ground'] = value
    }
  }
  paint(style.fg, 'fg')
  paint(style.bg, 'bg')
  for (const name of ['bold', 'dim', 'italic', 'underline', 'inverse', 'strike']) {
    if (style[name]) classes.push(`a-${name}`)
  }
  const isPlain = !classes.length && !Object.keys(css).length
  style.key = isPlain ? PLAIN : { class: classes.join(' '), style: css }
  return style.key
}
const PLAIN = { class: '', style: null }

export class LogBuffer {
  constructor() {
    this.lines = [] // {text, spans: [[end, style]…] | null, t, stream, continued}
    this.version = 0
    this.characters = 0
    this.cut = 0 // lines that fell off the top
    this.lastSeq = 0
    this.stderrLines = 0
    this._streams = new Map()
  }

  /** Takes records in order; one that is here already is ignored. */
  push(records) {
    let changed = false
    for (const record of records) {
      if (record.seq != null && record.seq <= this.lastSeq) continue
      if (record.seq != null) this.lastSeq = record.seq
      changed = true
      if (record.dropped_bytes != null && record.data == null) this._gap(record)
      else this._write(record.stream ?? 'stdout', record.data ?? '', record.t ?? 0)
    }
    if (this.lines.length > MAX_LINES) this._trim()
    if (changed) this.version++
    return changed
  }

  note(text, t = 0) {
    this._line('system', t).text = text
    this.version++
  }

  _gap({ dropped_bytes, t = 0 }) {
    for (const state of this._streams.values()) state.line = null
    const line = this._line('gap', t)
    line.text = `${count(dropped_bytes)} bytes left out here: the log's head and tail are kept`
  }

  _trim() {
    const open = new Set([...this._streams.values()].map((state) => state.line))
    const excess = this.lines.length - MAX_LINES + 50_000
    if (!this.lines.slice(0, excess).some((line) => open.has(line))) {
      this.lines.splice(0, excess)
      this.cut += excess
    }
  }

  _state(stream) {
    let state = this._streams.get(stream)
    if (!state) this._streams.set(stream, (state = { line: null, style: plainStyle(), carry: '', returned: false }))
    return state
  }

  _line(stream, t, continued = false) {
    const line = { text: '', spans: null, t, stream, continued }
    this.lines.push(line)
    if (stream === 'stderr') this.stderrLines++
    return line
  }

  _write(stream, data, t) {
    const state = this._state(stream)
    if (state.carry) {
      data = state.carry + data
      state.carry = ''
    }
    const unfinished = data.length && UNFINISHED.exec(data.slice(-600))
    if (unfinished) {
      state.carry = unfinished[0]
      data = data.slice(0, -unfinished[0].length)
    }
    let at = 0
    TOKEN.lastIndex = 0
    for (let token; (token = TOKEN.exec(data));) {
      if (token.index > at) this._text(state, stream, data.slice(at, token.index), t)
      at = TOKEN.lastIndex
      this._control(state, stream, token, t)
    }
    if (at < data.length) this._text(state, stream, data.slice(at), t)
  }

  _control(state, stream, [token, parameters, final], t) {
    if (token === '\n' || token === '\r\n') {
      state.line ??= this._line(stream, t)
      state.line = null
      state.returned = false
    } else if (token === '\r') state.returned = true
    else if (token === '\x08') {
      if (state.line?.text) this._truncate(state.line, state.line.text.length - 1)
    } else if (final === 'm') applySgr(state.style, parameters)
    else if (final === 'K' && (parameters === '2' || state.returned) && state.line) this._truncate(state.line, 0)
  }

  _truncate(line, length) {
    this.characters -= line.text.length - length
    line.text = line.text.slice(0, length)
    if (line.spans) {
      line.spans = line.spans.filter(([end], i) => i === 0 || line.spans[i - 1][0] < length)
      if (line.spans.length) line.spans[line.spans.length - 1][0] = length
    }
  }

  _text(state, stream, text, t) {
    // A progress bar: what comes after \r replaces the line.
    if (state.returned && state.line) this._truncate(state.line, 0)
    state.returned = false
    text = text.replace(CONTROL, show)
    while (text) {
      if (state.line && state.line.text.length >= MAX_LINE) state.line = this._line(stream, t, true)
      state.line ??= this._line(stream, t)
      const line = state.line
      let room = MAX_LINE - line.text.length
      if (room < text.length && /[\ud800-\udbff]/.test(text[room - 1])) room++ // never split a pair
      const piece = text.slice(0, room)
      text = text.slice(room)
      this._append(line, piece, rendered(state.style))
    }
  }

  _append(line, piece, style) {
    const before = line.text.length
    line.text += piece
    this.characters += piece.length
    if (!line.spans) {
      if (style === PLAIN) return
      line.spans = before ? [[before, PLAIN]] : []
    }
    const last = line.spans[line.spans.length - 1]
    if (last && last[1] === style) last[0] = line.text.length
    else line.spans.push([line.text.length, style])
  }

  text() {
    let all = ''
    this.lines.forEach((line, i) => { all += (i && !line.continued ? '\n' : '') + line.text })
    return all && all + '\n'
  }

  search(query, limit = 10_000) {
    const needle = query.toLowerCase(), found = []
    for (let i = 0; needle && i < this.lines.length && found.length < limit; i++) {
      if (this.lines[i].text.toLowerCase().includes(needle)) found.push(i)
    }
    return found
  }
}

const FRAME = /(?:File "|\(|\bat |^)((?:\/work\/|\.\/)?([^\s"():][^"():\n]*?\.\w+))(?:", line |:)(\d+)/g

/** Places in a traceback that name one of `paths`: [{start, end, path, line}]. */
export function frames(text, paths) {
  const found = []
  if (text.length > 2000) return found
  FRAME.lastIndex = 0
  for (let match; (match = FRAME.exec(text));) {
    const path = match[1].replace(/^(\/work\/|\.\/)/, '')
    if (paths.has(path)) {
      const start = match.index + match[0].indexOf(match[1])
      found.push({ start, end: match.index + match[0].length, path, line: Number(match[3]) })
    }
  }
  return found
}

/** A line cut into pieces: [{text, style, hit, frame}]. `query` is lower case or ''. */
export function pieces(line, query, places) {
  const cuts = new Set([0, line.text.length])
  for (const [end] of line.spans ?? []) cuts.add(end)
  const hits = []
  if (query) {
    const lower = line.text.toLowerCase()
    for (let at = lower.indexOf(query); at >= 0 && hits.length < 500; at = lower.indexOf(query, at + query.length)) {
      hits.push([at, at + query.length])
      cuts.add(at).add(at + query.length)
    }
  }
  for (const { start, end } of places) cuts.add(start).add(end)
  const edges = [...cuts].filter((at) => at <= line.text.length).sort((a, b) => a - b)
  const result = []
  for (let i = 0, span = 0, hit = 0; i + 1 < edges.length; i++) {
    const [start, end] = [edges[i], edges[i + 1]]
    while (line.spans && span < line.spans.length && line.spans[span][0] <= start) span++
    while (hit < hits.length && hits[hit][1] <= start) hit++
    result.push({
      text: line.text.slice(start, end),
      style: line.spans?.[span]?.[1] ?? PLAIN,
      hit: hit < hits.length && hits[hit][0] <= start,
      frame: places.find((place) => place.start <= start && end <= place.end),
    })
  }
  return result
}
