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

/** Who serves there. early.js has asked already, of the server that the page came from. */
export async function info() {
  const asked = globalThis.firstAnswer
  delete globalThis.firstAnswer
  return (!connection.base && (await asked)) || json('/')
}
export const stats = () => json('/stats')
export const environments = () => json('/environments')
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
