// Files → one gzipped tar, in the browser. ustar, with pax records where ustar is too small.

const BLOCK = 512
const encoder = new TextEncoder()

function octal(value, width) {
  return value.toString(8).padStart(width - 1, '0') + '\0'
}

function header(nameBytes, prefixBytes, size, mode, type, mtime) {
  const block = new Uint8Array(BLOCK)
  const put = (text, at) => block.set(typeof text === 'string' ? encoder.encode(text) : text, at)
  put(nameBytes, 0)
  put(octal(mode, 8), 100)
  put(octal(0, 8), 108)
  put(octal(0, 8), 116)
  put(octal(size, 12), 124)
  put(octal(mtime, 12), 136)
  put('        ', 148)
  put(type, 156)
  put('ustar\x0000', 257)
  put(prefixBytes, 345)
  let sum = 0
  for (const byte of block) sum += byte
  put(sum.toString(8).padStart(6, '0') + '\0 ', 148)
  return block
}

function paxRecord(key, value) {
  // The length counts itself: "27 path=…\n".
  const body = encoder.encode(` ${key}=${value}\n`)
  let length = body.length + 1
  while (String(length).length + body.length !== length) length = String(length).length + body.length
  const record = new Uint8Array(length)
  record.set(encoder.encode(String(length)))
  record.set(body, length - body.length)
  return record
}

function padding(size) {
  const rest = size % BLOCK
  return rest ? new Uint8Array(BLOCK - rest) : null
}

// ustar keeps 100 bytes of name and, split off at a slash, 155 of prefix.
function fit(bytes) {
  if (bytes.length <= 100) return [bytes, new Uint8Array()]
  for (let i = Math.max(0, bytes.length - 101); i < bytes.length && i <= 155; i++) {
    if (bytes[i] === 0x2f && bytes.length - i - 1 > 0) return [bytes.subarray(i + 1), bytes.subarray(0, i)]
  }
  return null
}

function* entryHeaders({ path, size, mode, type, mtime }) {
  const name = encoder.encode(type === '5' ? path.replace(/\/*$/, '/') : path)
  const plain = name.every((byte) => byte > 0x1f && byte < 0x7f)
  const fitted = plain ? fit(name) : null
  if (!fitted) {
    const record = paxRecord('path', new TextDecoder().decode(name))
    yield header(encoder.encode('@pax'), new Uint8Array(), record.length, 0o644, 'x', mtime)
    yield record
    const pad = padding(record.length)
    if (pad) yield pad
  }
  const [short, prefix] = fitted ?? [encoder.encode('@long' + (type === '5' ? '/' : '')), new Uint8Array()]
  yield header(short, prefix, size, mode, type, mtime)
}

// A file that is read costs a message to another process and back. So small ones are read
// whole and ahead of their turn, and what is handed on is of a size that is worth it.
const SMALL = 64 * 1024
const AHEAD = 64
const CHUNK = 256 * 1024

/** A browser does not tell the executable bit; a #! line or an ELF head says what was meant. */
const looksExecutable = (start) => (start[0] === 0x23 && start[1] === 0x21) || (start[0] === 0x7f && start[1] === 0x45)

async function* chunks(blob) {
  const reader = blob.stream().getReader()
  for (;;) {
    const { done, value } = await reader.read()
    if (done) return
    yield value
  }
}

/** entries: {path, blob} for a file, {path} for a directory. Yields Uint8Arrays. */
export async function* tar(entries, onFile = () => {}) {
  const ahead = new Map()
  const read = (i) => {
    const blob = entries[i]?.blob
    if (!blob || blob.size > SMALL) return
    const content = blob.arrayBuffer()
    content.catch(() => {}) // it is told when its turn comes
    ahead.set(i, content)
  }
  for (let i = 0; i < AHEAD; i++) read(i)
  for (const [i, entry] of entries.entries()) {
    read(i + AHEAD)
    const { path, blob, mtime = 0 } = entry
    const common = { path, mtime: Math.floor(mtime / 1000) }
    if (!blob) {
      yield* entryHeaders({ ...common, size: 0, mode: 0o755, type: '5' })
      continue
    }
    const whole = ahead.has(i) ? new Uint8Array(await ahead.get(i)) : null
    ahead.delete(i)
    const executable = entry.executable ?? looksExecutable(whole ?? new Uint8Array(await blob.slice(0, 4).arrayBuffer()))
    yield* entryHeaders({ ...common, size: blob.size, mode: executable ? 0o755 : 0o644, type: '0' })
    if (whole) yield whole
    else yield* chunks(blob)
    const pad = padding(blob.size)
    if (pad) yield pad
    onFile(entry)
  }
  yield new Uint8Array(2 * BLOCK)
}

function join(parts, size) {
  const all = new Uint8Array(size)
  let at = 0
  for (const part of parts) {
    all.set(part, at)
    at += part.length
  }
  return all
}

/** Resolves to one gzipped Blob. `signal` aborts between two chunks. */
export async function pack(entries, { onFile, signal } = {}) {
  const source = tar(entries, onFile)
  const stream = new ReadableStream({
    async pull(controller) {
      const parts = []
      let size = 0, ended = false
      while (size < CHUNK && !ended) {
        signal?.throwIfAborted()
        const { done, value } = await source.next()
        ended = done
        if (done) break
        parts.push(value)
        size += value.length
      }
      if (size) controller.enqueue(join(parts, size))
      if (ended) controller.close()
    },
  })
  const zipped = stream.pipeThrough(new CompressionStream('gzip'), { signal })
  return new Response(zipped, { headers: { 'Content-Type': 'application/gzip' } }).blob()
}
