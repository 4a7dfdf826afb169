// Output patterns, matched as the server does: * ? [...] ** dir/ !not. Pure, linear time per pair.

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
    if (pattern[p] === '*') {
      star = p++
      mark = t
    } else if (group ? group[0] : p < pattern.length && (pattern[p] === '?' || pattern[p] === text[t])) {
      p = group ? group[1] : p + 1
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

export function matches(pattern, path) {
  let wanted = pattern.replace(/^\.?\/+/, '')
  if (wanted.endsWith('/')) wanted += '**'
  const segments = wanted.split('/')
  // A pattern without a slash means the name, wherever the file lies.
  return matchSegments(segments.length === 1 ? ['**', wanted] : segments, path.split('/'))
}

export function select(patterns, paths) {
  return paths.filter((path) => {
    let taken = false
    for (const pattern of patterns) {
      if (pattern.startsWith('!')) taken = taken && !matches(pattern.slice(1), path)
      else taken = taken || matches(pattern, path)
    }
    return taken
  })
}
