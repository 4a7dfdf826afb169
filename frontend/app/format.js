// Numbers and names for people. Pure.

export function bytes(n) {
  if (n == null || !Number.isFinite(n)) return '–'
  if (n < 1024) return `${n} B`
  const units = ['KB', 'MB', 'GB', 'TB']
  let unit = -1
  do { n /= 1024; unit++ } while (n >= 1023.95 && unit < units.length - 1)
  return `${n < 10 ? n.toFixed(1).replace(/\.0$/, '') : Math.round(n)} ${units[unit]}`
}

export function seconds(s) {
  if (s == null || !Number.isFinite(s)) return '–'
  if (s < 0.0005) return '< 1 ms'
  if (s < 0.9995) return `${Math.round(s * 1000)} ms`
  if (s < 9.995) return `${s.toFixed(2)} s`
  if (s < 99.95) return `${s.toFixed(1)} s`
  const two = (big, unit, small, smaller) => `${big} ${unit}${small ? ` ${small} ${smaller}` : ''}`
  if (s < 3599.5) return two(Math.floor(Math.round(s) / 60), 'min', Math.round(s) % 60, 's')
  return two(Math.floor(s / 3600), 'h', Math.floor((s % 3600) / 60), 'min')
}

/** An estimate has no digits behind the point. */
export const roughly = (s) => (s < 1 ? 'a second' : seconds(Math.round(s)).replace(/\.0+ s$/, ' s'))

export function amount(n, digits = 1) {
  if (n == null || !Number.isFinite(n)) return '–'
  const [whole, rest] = String(Number(n.toFixed(n < 10 ? digits : 0))).split('.')
  return `${count(Number(whole))}${rest ? `.${rest}` : ''}`
}

// Not toLocaleString: the browser's tables for all languages take 30 ms to load, before the first paint.
export const count = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, ',')

export const plural = (n, word) => `${count(n)} ${word}${n === 1 ? '' : 's'}`

export function countdown(s) {
  s = Math.max(0, Math.ceil(s))
  const pad = (n) => String(n).padStart(2, '0')
  return s >= 3600
    ? `${Math.floor(s / 3600)}:${pad(Math.floor((s % 3600) / 60))}:${pad(s % 60)}`
    : `${Math.floor(s / 60)}:${pad(s % 60)}`
}

// Line breaks, escapes and direction overrides could make one name look like
// another ("gpj.exe" read backwards), so they are shown instead of obeyed.
const HIDDEN = /[\u0000-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb]/g
const LONE_SURROGATE = /[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g

export function visible(name) {
  return String(name)
    .replace(HIDDEN, (c) => {
      const code = c.charCodeAt(0)
      if (code < 0x20) return String.fromCharCode(0x2400 + code)
      return `⟨${code.toString(16).toUpperCase().padStart(4, '0')}⟩`
    })
    .replace(LONE_SURROGATE, '\ufffd')
}

export const baseName = (path) => path.slice(path.lastIndexOf('/') + 1)

export function extension(path) {
  const name = baseName(path)
  const dot = name.lastIndexOf('.')
  return dot > 0 ? name.slice(dot + 1) : ''
}

// An instant as the server may write it: ISO text or seconds since 1970.
export function instant(value) {
  if (value == null || value === '') return null
  if (typeof value === 'number') return value * 1000
  const parsed = Date.parse(value)
  return Number.isNaN(parsed) ? null : parsed
}
