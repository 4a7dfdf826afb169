// What kind of preview a file gets, and the parsing for it. Pure.

import { extension } from './format.js'

const IMAGES = { png: 'image/png', jpg: 'image/jpeg', jpeg: 'image/jpeg', gif: 'image/gif', webp: 'image/webp', avif: 'image/avif', bmp: 'image/bmp', ico: 'image/x-icon', svg: 'image/svg+xml' }
const AUDIO = { mp3: 'audio/mpeg', wav: 'audio/wav', ogg: 'audio/ogg', flac: 'audio/flac', m4a: 'audio/mp4' }
const VIDEO = { mp4: 'video/mp4', webm: 'video/webm', mov: 'video/quicktime', ogv: 'video/ogg' }

const MIB = 1024 * 1024
const WHOLE = 100 * MIB

/** {kind, mime, bytes: how much to fetch}. The name decides; the server's type may say anything. */
export function kindOf(path) {
  const ending = extension(path).toLowerCase()
  if (IMAGES[ending]) return { kind: 'image', mime: IMAGES[ending], bytes: 32 * MIB }
  if (AUDIO[ending]) return { kind: 'audio', mime: AUDIO[ending], bytes: WHOLE }
  if (VIDEO[ending]) return { kind: 'video', mime: VIDEO[ending], bytes: WHOLE }
  if (ending === 'pdf') return { kind: 'pdf', mime: 'application/pdf', bytes: WHOLE }
  if (ending === 'csv' || ending === 'tsv') return { kind: 'table', mime: 'text/plain', bytes: 2 * MIB }
  if (ending === 'json') return { kind: 'json', mime: 'text/plain', bytes: 2 * MIB }
  return { kind: 'text', mime: 'text/plain', bytes: MIB / 2 }
}

/** The text of these bytes, or null if they are no text. `cut`: the end is missing. */
export function asText(bytes, cut) {
  if (bytes.subarray(0, 8192).includes(0)) return null
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes, { stream: cut })
  } catch {
    return null
  }
}

export function parseTable(text, { separator = null, maxRows = 1000, maxColumns = 60 } = {}) {
  separator ??= guess(text)
  const rows = []
  let row = [], cell = '', quoted = false, at = 0
  const endCell = () => {
    if (row.length < maxColumns) row.push(cell)
    cell = ''
  }
  const endRow = () => {
    endCell()
    rows.push(row)
    row = []
  }
  for (; at < text.length && rows.length < maxRows; at++) {
    const c = text[at]
    if (quoted) {
      if (c !== '"') cell += c
      else if (text[at + 1] === '"') {
        cell += '"'
        at++
      } else quoted = false
    } else if (c === '"' && cell === '') quoted = true
    else if (c === separator) endCell()
    else if (c === '\n') endRow()
    else if (c !== '\r') cell += c
  }
  if (at >= text.length && (cell || row.length)) endRow()
  const width = Math.max(0, ...rows.map((r) => r.length))
  const numeric = Array.from({ length: width }, (_, i) =>
    rows.length > 1 && rows.slice(1).every((r) => !r[i] || /^[-+]?[\d.,]+(e[-+]?\d+)?%?$/i.test(r[i].trim())))
  return { rows, numeric, complete: at >= text.length }
}

function guess(text) {
  const line = text.slice(0, text.indexOf('\n') >>> 0 || undefined)
  const candidates = ['\t', ';', ',']
  return candidates.reduce((best, c) => (line.split(c).length > line.split(best).length ? c : best), ',')
}

export function hexRows(bytes, limit = 16 * 1024) {
  const rows = []
  for (let at = 0; at < bytes.length && at < limit; at += 16) {
    const part = [...bytes.subarray(at, at + 16)]
    rows.push({
      offset: at.toString(16).padStart(8, '0'),
      hex: part.map((b) => b.toString(16).padStart(2, '0')).join(' '),
      text: part.map((b) => (b > 0x1f && b < 0x7f ? String.fromCharCode(b) : '·')).join(''),
    })
  }
  return rows
}
