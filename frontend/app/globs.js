// Output patterns, by the rules of the server's globs.py. Pure.
//
// Only a preview of what the server will do, over the user's own names: two-pointer
// matching, quadratic at worst.

function matchClass(pattern, at, char) {
  // Returns [matches, index behind the class], or null if "[" is a plain character here.
  let end = at + 1
  const negated = pattern[end] === '!' || pattern[end] === '^'
  if (negated) end++
  const first = end
  while (end < pattern.length && (pattern[end] !== ']' || end === first)) end++
  if (end >= pattern.length) return null
  let hit = false
  for (let i = first; i < end; i++) {
    if (pattern[i + 1] === '-' && i + 2 < end) {
      if (pattern[i] <= char && char <= pattern[i + 2]) hit = true
      i += 2
    } else if (pattern[i] === char) hit = true
  }
  return [hit !== negated, end + 1]
}

function matchSegment(pattern, text) {
  let p = 0, t = 0, star = -1, mark = 0
  while (t < text.length) {
    const group = pattern[p] === '[' ? matchClass(pattern, p, text[t]) : null
    const escaped = pattern[p] === '\\' && p + 1 < pattern.length
    if (pattern[p] === '*') {
      star = p++
      mark = t
    } else if (group ? group[0] : escaped ? pattern[p + 1] === text[t]
      : p < pattern.length && (pattern[p] === '?' || pattern[p] === text[t])) {
      p = group ? group[1] : escaped ? p + 2 : p + 1
      t++
    } else if (star >= 0) {
      p = star + 1
      t = ++mark
    } else return false
  }
  while (pattern[p] === '*') p++
  return p >= pattern.length
}

function matchSegments(pattern, path) {
  let p = 0, t = 0, star = -1, mark = 0
  while (t < path.length) {
    if (pattern[p] === '**') {
      star = p++
      mark = t
    } else if (p < pattern.length && matchSegment(pattern[p], path[t])) {
      p++
      t++
    } else if (star >= 0) {
      p = star + 1
      t = ++mark
    } else return false
  }
  while (pattern[p] === '**') p++
  return p >= pattern.length
}

/** Whether `pattern` (without "!") takes the file at `path`. */
export function matches(pattern, path) {
  const onlyBelow = pattern.endsWith('/')
  const wanted = pattern.replace(/^\.\//, '').replace(/\/+$/, '')
  // Without a slash inside it is looked for at every depth, else from the work directory on.
  const segments = wanted.includes('/') ? wanted.replace(/^\//, '').split('/') : ['**', wanted]
  const parts = path.split('/')
  // A directory that matches brings everything below it.
  for (let depth = 1; depth <= parts.length - (onlyBelow ? 1 : 0); depth++) {
    if (matchSegments(segments, parts.slice(0, depth))) return true
  }
  return false
}

/** `!pattern` takes out what the others let in, whatever the order. */
export function select(patterns, paths) {
  const wanted = patterns.filter((pattern) => !pattern.startsWith('!'))
  const unwanted = patterns.filter((pattern) => pattern.startsWith('!')).map((pattern) => pattern.slice(1))
  const any = (list, path) => list.some((pattern) => matches(pattern, path))
  return paths.filter((path) => any(wanted, path) && !any(unwanted, path))
}
