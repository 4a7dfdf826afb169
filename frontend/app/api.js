// Every request to the server. The only file that knows routes.

export class ApiError extends Error {
  /** `status` 0: no answer at all. */
  constructor(status, body, headers) {
    super(body?.error || (status ? `The server answered ${status}` : 'The server does not answer'))
    this.status = status
    this.code = body?.code ?? (status ? `http_${status}` : 'unreachable')
    this.details = body?.details ?? {}
    const retry = Number(body?.retry_after ?? headers?.get?.('Retry-After'))
    this.retryAfter = Number.isFinite(retry) && retry > 0 ? retry : null
  }
}

export const connection = { base: '' }

export const url = (path) => `${connection.base}${path}`
const encodePath = (path) => path.split('/').map(encodeURIComponent).join('/')

async function request(path, { accept = 'application/json', ...options } = {}) {
  let response
  try {
    response = await fetch(url(path), {
      ...options,
      headers: { Accept: accept, ...options.headers },
      cache: 'no-store',
      credentials: 'omit',
      referrerPolicy: 'no-referrer',
    })
  } catch (error) {
    if (error.name === 'AbortError') throw error
    throw new ApiError(0)
  }
  if (!response.ok) throw new ApiError(response.status, await response.json().catch(() => null), response.headers)
  return response
}

async function json(path, options) {
  const response = await request(path, options)
  if (response.status === 204) return null
  try {
    return await response.json()
  } catch {
    throw new ApiError(response.status, { error: 'This address does not speak JSON', code: 'not_sandrun' })
  }
}

/** Server-Sent Events of an answer, as they come: {event, id, data}, several at a time. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let text = ''
  for (;;) {
    const { done, value } = await reader.read()
    if (done) return
    text += value
    const blocks = text.split(/\r?\n\r?\n/)
    text = blocks.pop()
    const found = blocks.map(oneEvent).filter(({ data }) => data)
    if (found.length) yield found
  }
}

function oneEvent(block) {
  const fields = { event: '', id: '', data: '' }
  for (const line of block.split(/\r?\n/)) {
    const [, name, value] = /^(\w+): ?(.*)$/.exec(line) ?? []
    if (name === 'data') fields.data += value
    else if (name) fields[name] = value
  }
  return fields
}

export const info = () => json('/')
export const stats = () => json('/stats')
export const environments = () => json('/environments')

/** What a sandrun that serves this page wrote into it, {info, environments, stats}, or null. */
export function brought() {
  const element = document.getElementById('given')
  return element && JSON.parse(element.textContent)
}

export const privacy = () => json('/privacy')
export const status = (id, signal) => json(`/status/${id}`, { signal })
export const outputs = (id) => json(`/outputs/${id}`)
export const cancel = (id) => json(`/jobs/${id}/cancel`, { method: 'POST' })
export const remove = (id) => request(`/jobs/${id}`, { method: 'DELETE' })
export const rawLog = async (id) => (await request(`/logs/${id}`, { accept: 'text/plain' })).blob()
export const pollLog = (id, cursor, wait, signal) => json(`/logs/${id}?records=1&since=${cursor}&wait=${wait}`, { signal })

export const filePath = (id, path) => `/download/${id}/${encodePath(path)}`

/** One file's answer; `range`: only so many bytes from its start. */
export const openFile = (path, { range, signal } = {}) =>
  request(path, { headers: range ? { Range: `bytes=0-${range - 1}` } : {}, signal, accept: '*/*' })

export const archivePath = (id, format, keep) => `/download/${id}?format=${format}${keep ? '&keep=1' : ''}`

/** Reads a body with progress. Resolves to a Blob. */
export async function download(path, { onProgress = () => {}, signal } = {}) {
  const response = await request(path, { accept: '*/*', signal })
  const total = Number(response.headers.get('Content-Length')) || null
  const reader = response.body.getReader()
  const chunks = []
  let received = 0
  for (;;) {
    let step
    try {
      step = await reader.read()
    } catch (error) {
      if (error.name === 'AbortError') throw error
      throw new ApiError(0, { error: 'The connection broke; nothing was deleted', code: 'broken_download' })
    }
    if (step.done) break
    chunks.push(step.value)
    received += step.value.length
    onProgress(received, total)
  }
  return new Blob(chunks, { type: response.headers.get('Content-Type') ?? '' })
}

function boundary() {
  return [...crypto.getRandomValues(new Uint8Array(16))].map((b) => b.toString(16).padStart(2, '0')).join('')
}

export const idempotencyKey = boundary

/** A small job in one request, for `seconds` at most: what was accepted, and batches of events:
 *  its log, its end and its files. */
export async function run(body, { key, seconds, signal }) {
  const response = await request(`/run?inline=1&timeout=${seconds}`, {
    method: 'POST', body, signal, accept: 'text/event-stream',
    headers: { 'Content-Type': 'application/json', 'Idempotency-Key': key },
  })
  const batches = events(response)
  const { value } = await batches.next().catch((error) => ({ value: error.name === 'AbortError' ? Promise.reject(error) : null }))
  if (!value) throw new ApiError(0)
  const [accepted, ...rest] = await value
  return { accepted: JSON.parse(accepted.data), rest, batches }
}

/** XMLHttpRequest, because fetch tells nothing about the upload's progress. */
export function submit(body, { key, onProgress = () => {}, signal } = {}) {
  return new Promise((resolve, reject) => {
    const xhr = new XMLHttpRequest()
    xhr.open('POST', url('/submit'))
    xhr.responseType = 'json'
    xhr.setRequestHeader('Accept', 'application/json')
    xhr.setRequestHeader('Idempotency-Key', key)
    if (typeof body === 'string') xhr.setRequestHeader('Content-Type', 'application/json')
    xhr.upload.onprogress = (event) => onProgress(event.loaded, event.total)
    xhr.onload = () => {
      if (xhr.status >= 200 && xhr.status < 300 && xhr.response) resolve(xhr.response)
      else reject(new ApiError(xhr.status, xhr.response, { get: (name) => xhr.getResponseHeader(name) }))
    }
    xhr.onerror = () => reject(new ApiError(0))
    xhr.onabort = () => reject(new DOMException('cancelled', 'AbortError'))
    signal?.addEventListener('abort', () => xhr.abort(), { once: true })
    xhr.send(body)
  })
}
