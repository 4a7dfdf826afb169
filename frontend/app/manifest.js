// The form ↔ the manifest, and the same job as curl, Python and job.json. Pure.

export const LIMITS = [
  { key: 'timeout', label: 'Wall time', unit: 's', min: 1, step: 1 },
  { key: 'cpu_seconds', label: 'CPU time', unit: 's', min: 1, step: 1 },
  { key: 'memory_mb', label: 'Memory', unit: 'MB', min: 16, step: 16 },
  { key: 'storage_mb', label: 'Storage', unit: 'MB', min: 1, step: 1 },
  { key: 'processes', label: 'Processes', unit: '', min: 1, step: 1 },
  { key: 'open_files', label: 'Open files', unit: '', min: 16, step: 16 },
]

export const emptyForm = () => ({
  entrypoint: '', interpreter: '', args: '', stdin: '', env: [], outputs: '', requirements: '',
  environment: '', profile: '', build: '',
  timeout: null, cpu_seconds: null, memory_mb: null, storage_mb: null, processes: null, open_files: null,
  stated: [], // keys that job.json named: they are sent even if emptied, or job.json would win again
})

/** 'a "b c" d' → ['a', 'b c', 'd']. Throws on an open quote. */
export function splitWords(text) {
  const words = []
  let word = null, quote = ''
  for (let i = 0; i < text.length; i++) {
    const c = text[i]
    if (quote) {
      if (c === quote) quote = ''
      else if (c === '\\' && quote === '"' && /["\\]/.test(text[i + 1] ?? '')) word += text[++i]
      else word += c
    } else if (c === '"' || c === "'") {
      quote = c
      word ??= ''
    } else if (c === '\\' && i + 1 < text.length) word = (word ?? '') + text[++i]
    else if (/\s/.test(c)) {
      if (word !== null) words.push(word)
      word = null
    } else word = (word ?? '') + c
  }
  if (quote) throw new Error(`the arguments hold an open ${quote}`)
  if (word !== null) words.push(word)
  return words
}

export const quoteWord = (word) =>
  /^[A-Za-z0-9_\-./:=@%+,]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`

const lines = (text) => text.split('\n').map((line) => line.trim()).filter(Boolean)

export function toManifest(form) {
  const manifest = {}
  const put = (key, value, isSet) => {
    if (isSet || form.stated.includes(key)) manifest[key] = value
  }
  for (const key of ['entrypoint', 'interpreter', 'environment', 'requirements', 'build', 'profile']) {
    const value = form[key].trim()
    if (value) manifest[key] = value
  }
  const args = splitWords(form.args)
  put('args', args, args.length)
  put('stdin', form.stdin, form.stdin !== '')
  const env = Object.fromEntries(form.env.filter(({ name }) => name).map(({ name, value }) => [name, value]))
  put('env', env, Object.keys(env).length)
  const outputs = lines(form.outputs)
  put('outputs', outputs.length ? outputs : ['*'], outputs.length)
  for (const { key } of LIMITS) if (form[key] != null && form[key] !== '') manifest[key] = Number(form[key])
  return manifest
}

/** Throws where it is no manifest: the server would refuse it, too. */
export function fromManifest(manifest) {
  if (manifest === null || typeof manifest !== 'object' || Array.isArray(manifest)) throw new Error('it is no object')
  const need = (key, isRight, what) => { if (manifest[key] !== undefined && !isRight(manifest[key])) throw new Error(`"${key}" must be ${what}`) }
  need('args', Array.isArray, 'a list')
  need('outputs', Array.isArray, 'a list')
  need('env', (value) => value && typeof value === 'object' && !Array.isArray(value), 'an object')
  const form = emptyForm()
  const known = new Set(Object.keys(form))
  for (const [key, value] of Object.entries(manifest)) {
    if (!known.has(key) || key === 'stated') continue
    form.stated.push(key)
    if (key === 'args') form.args = value.map(String).map(quoteWord).join(' ')
    else if (key === 'env') form.env = Object.entries(value).map(([name, v]) => ({ name, value: String(v) }))
    else if (key === 'outputs') form.outputs = value.join('\n')
    else if (LIMITS.some((limit) => limit.key === key)) form[key] = Number(value)
    else form[key] = String(value ?? '')
  }
  return { form, unknown: Object.keys(manifest).filter((key) => !known.has(key)) }
}

// What must be compiled first, and how: the same as the server's.
const COMPILERS = {
  '.c': (source) => `cc ${source} -o main`,
  '.cc': (source) => `c++ ${source} -o main`,
  '.cpp': (source) => `c++ ${source} -o main`,
  '.cxx': (source) => `c++ ${source} -o main`,
  '.go': (source) => `go build -o main ${source}`,
  '.rs': (source) => `rustc ${source} -o main`,
}
const ENTRYPOINTS = ['main.py', 'index.js', 'main.sh', 'run.sh', ...Object.keys(COMPILERS).map((ending) => `main${ending}`)]

export function detectEntrypoint(form, paths) {
  if (form.entrypoint.trim()) return form.entrypoint.trim()
  return ENTRYPOINTS.find((name) => paths.includes(name)) ?? ''
}

const MAIN = /(^|\/)(__main__|main|index|app|run)\.\w+$/

/** The only program among `paths`, or the only one with a name that programs begin with, or ''. */
export function onlyProgram(form, paths, interpreters) {
  const programs = paths.filter((path) => detectInterpreter(form, path, interpreters) || detectBuild(form, path))
  const mains = programs.filter((path) => MAIN.test(path))
  return (programs.length === 1 ? programs[0] : mains.length === 1 ? mains[0] : '')
}

const endingOf = (path) => (path.lastIndexOf('.') > 0 ? path.slice(path.lastIndexOf('.')) : '')

/** {build, entrypoint} that a source file needs before it can run, or null. */
export function detectBuild(form, entrypoint) {
  const compile = COMPILERS[endingOf(entrypoint)]
  return compile && !form.build.trim() && !form.interpreter ? { build: compile(quoteWord(entrypoint)), entrypoint: 'main' } : null
}

export function detectInterpreter(form, entrypoint, interpreters) {
  if (form.interpreter) return form.interpreter
  const ending = endingOf(entrypoint)
  return interpreters.find(({ extensions }) => ending && extensions?.includes(ending))?.name ?? ''
}

/** Why the form cannot be sent: {field: sentence}. */
export function problems(form, maximum, paths) {
  const found = {}
  try {
    splitWords(form.args)
  } catch (error) {
    found.args = error.message
  }
  for (const { key, label, min } of LIMITS) {
    const value = form[key]
    if (value == null || value === '') continue
    const top = maximum?.[key]
    if (!Number.isFinite(Number(value)) || value < min) found[key] = `${label} starts at ${min}`
    else if (top != null && value > top) found[key] = `${label} goes up to ${top} here`
  }
  const entrypoint = form.entrypoint.trim()
  if (entrypoint && paths.length && !paths.includes(entrypoint) && !form.build.trim()) {
    found.entrypoint = 'No file has this name'
  }
  for (const { name } of form.env) {
    if (name && !/^[A-Za-z_][A-Za-z0-9_]*$/.test(name)) found.env = `“${name}” is not a variable's name`
  }
  return found
}

const shellQuote = (text) => `'${text.replaceAll("'", `'\\''`)}'`

const MAX_SPELLED = 16 * 1024 // characters; a longer command is no command any more

/** `files`: {path: text} of what was written here and lies in no folder, or null. */
export function asCurl(origin, manifest, paths, files) {
  const body = files && JSON.stringify({ manifest, files }, null, 2)
  if (body && body.length < MAX_SPELLED) {
    return `curl -sS ${shellQuote(`${origin}/run`)} -H 'Content-Type: application/json' \\\n  --data-binary @- <<'JOB'\n${body}\nJOB\n`
  }
  const part = `-F manifest=${shellQuote(JSON.stringify(manifest) + ';type=application/json')}`
  const single = paths.length === 1 && !paths[0].includes('/')
  const upload = single ? `-F ${shellQuote(`files=@${paths[0]}`)}` : `-F 'files=@-;filename=job.tar.gz'`
  const command = `curl -sS ${shellQuote(`${origin}/run`)} \\\n  ${part} \\\n  ${upload}`
  return (single ? command : `tar -czf - . | ${command}`) + '\n'
}

export function asPython(origin, manifest) {
  return `import json, pathlib, urllib.request

here = pathlib.Path(".")
body = {
    "manifest": json.loads(${JSON.stringify(JSON.stringify(manifest))}),
    "files": {p.as_posix(): p.read_text() for p in here.rglob("*") if p.is_file()},
}
request = urllib.request.Request(
    ${JSON.stringify(`${origin}/run`)},
    json.dumps(body).encode(),
    {"Content-Type": "application/json"},
)
with urllib.request.urlopen(request) as answer:
    job = json.load(answer)
print(job["stdout"], end="")
print(job["status"], job["exit_reason"])
`
}

export const asJobJson = (manifest) => JSON.stringify(manifest, null, 2) + '\n'
