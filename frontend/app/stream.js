// One job's log, live: WebSocket, else Server-Sent Events, else polling; one cursor for all three.
//
// The cursor is the last record's seq. Whatever breaks, the next attempt goes on
// from there, and the buffer drops what it has: no line is lost or doubled.

import * as api from './api.js'

const BACKOFF_MS = [100, 250, 500, 1000, 2000, 3000]
const FRAME_MS = 40
const TRANSPORTS = ['websocket', 'sse', 'polling']

export class LogStream {
  /** on: {records(list), state(name), end(event), gone(), reset(), output(file), over()}
   *  opening: the answer of /run, which tells it all unless it takes too long: {rest, batches, abort}. */
  constructor(id, on, opening = null) {
    this.id = id
    this.on = on
    this.cursor = 0
    this.transport = 0
    this.failures = 0 // in a row, since the last record or open
    this.unopened = 0 // of this transport, which never opened
    this.stopped = false
    this.abort = null
    this.timer = 0
    this.pending = [] // records that wait for the next frame: a fast job sends hundreds a second
    this.handedOver = 0
    this.flushTimer = 0
    this._onOnline = () => this._retryNow()
    addEventListener('online', this._onOnline)
    if (opening) this._open(opening)
    else this._connect()
  }

  async _open({ rest, batches, abort }) {
    this.abort = abort
    try {
      for (const event of rest) this._event(event)
      for await (const batch of batches) for (const event of batch) this._event(event)
    } catch { /* what was missed is asked for from the cursor on */ }
    this.on.over()
    if (!this.stopped) this._connect()
  }

  stop() {
    this._rest()
    this.abort?.abort()
  }

  _rest() {
    this.stopped = true
    clearTimeout(this.flushTimer)
    clearTimeout(this.timer)
    removeEventListener('online', this._onOnline)
  }

  _retryNow() {
    if (!this.timer || this.stopped) return
    clearTimeout(this.timer)
    this._connect()
  }

  _connect() {
    this.timer = 0
    this.abort = new AbortController()
    const { signal } = this.abort
    const attempt = { websocket: () => this._webSocket(signal), sse: () => this._sse(signal), polling: () => this._poll(signal) }
    attempt[TRANSPORTS[this.transport]]().then(
      () => this._again(false),
      (error) => {
        if (signal.aborted && this.stopped) return
        if (error instanceof api.ApiError && [404, 410].includes(error.status)) this._gone()
        else if (error instanceof api.ApiError && error.status === 400 && this.cursor) this._startOver()
        else this._again(true)
      },
    )
  }

  _opened() {
    this.failures = 0
    this.unopened = 0
    this.on.state('live')
  }

  async _again(failed) {
    if (this.stopped) return
    if (failed) this.failures++
    this.on.state(this.failures > 0 ? 'reconnecting' : 'live')
    const wait = BACKOFF_MS[Math.min(this.failures, BACKOFF_MS.length - 1)]
    this.timer = setTimeout(() => this._connect(), wait)
  }

  // A transport that twice did not open although the server answers is blocked on the way.
  async _neverOpened() {
    this.unopened++
    try {
      await api.status(this.id)
    } catch (error) {
      if (error.status === 0) this.unopened = 0
      throw error
    }
    if (this.unopened >= 2 && this.transport < TRANSPORTS.length - 1) {
      this.transport++
      this.unopened = 0
    }
    throw new Error(`${TRANSPORTS[this.transport]}: did not open`)
  }

  _take(message) {
    if (message.event === 'end') {
      this._flush()
      this._rest() // and no more: small files may follow
      this.on.end(message)
      return
    }
    this._records([message])
  }

  _records(records) {
    for (const record of records) if (record.seq > this.cursor) this.cursor = record.seq
    this.failures = 0
    this.pending.push(...records)
    if (this.flushTimer) return
    const sinceLast = performance.now() - this.handedOver
    if (sinceLast > FRAME_MS) this._flush()
    else this.flushTimer = setTimeout(() => this._flush(), FRAME_MS - sinceLast)
  }

  _flush() {
    clearTimeout(this.flushTimer)
    this.flushTimer = 0
    const records = this.pending
    this.pending = []
    if (records.length) this.on.records(records)
    this.handedOver = performance.now() // after the work: a slow page gets larger portions
  }

  // The job went back into the queue before it ran: its log begins anew.
  _startOver() {
    this.cursor = 0
    this.pending = []
    this.on.reset()
    this._again(true)
  }

  _gone() {
    this.stop()
    this.on.gone()
  }

  _webSocket(signal) {
    const address = new URL(api.url(`/logs/${this.id}/stream?since=${this.cursor}`), location.href)
    address.protocol = address.protocol.replace('http', 'ws')
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(address)
      let open = false
      signal.addEventListener('abort', () => socket.close())
      socket.onopen = () => {
        open = true
        this._opened()
      }
      socket.onmessage = (event) => this._take(JSON.parse(event.data))
      socket.onclose = () => {
        if (this.stopped) resolve()
        else if (open) reject(new Error('websocket: closed'))
        else this._neverOpened().catch(reject)
      }
    })
  }

  async _sse(signal) {
    const response = await fetch(api.url(`/logs/${this.id}/stream?since=${this.cursor}`), {
      signal, cache: 'no-store', credentials: 'omit',
      headers: { Accept: 'text/event-stream', ...(this.cursor ? { 'Last-Event-ID': String(this.cursor) } : {}) },
    }).catch(() => null)
    if ([400, 404].includes(response?.status)) throw new api.ApiError(response.status)
    if (!response?.ok || !response.headers.get('Content-Type')?.startsWith('text/event-stream')) {
      return this._neverOpened()
    }
    this._opened()
    for await (const batch of api.events(response)) {
      for (const event of batch) this._event(event)
      if (this.stopped) return
    }
    throw new Error('sse: closed')
  }

  _event({ event, id, data }) {
    const message = JSON.parse(data)
    if (event === 'output') return this.on.output(message)
    if (event && event !== 'message') message.event = event
    if (message.seq == null && id) message.seq = Number(id)
    if (!this.stopped) this._take(message)
  }

  async _poll(signal) {
    const page = await api.pollLog(this.id, this.cursor, 20, signal)
    this.on.state('polling')
    if (page.records?.length) this._records(page.records)
    if (page.cursor > this.cursor) this.cursor = page.cursor
    if (page.records?.length) return
    const job = await api.status(this.id, signal)
    if (['completed', 'failed'].includes(job.status)) {
      // Once more: the last lines may have come between the two answers.
      const last = await api.pollLog(this.id, this.cursor, 0, signal)
      if (last.records?.length) this._records(last.records)
      this._take({ event: 'end', status: job.status, exit_reason: job.exit_reason })
    }
  }
}
