// How a job ended, in words, and what may be changed about it. Pure.

import { amount } from './format.js'

const SIGNALS = {
  1: 'SIGHUP', 2: 'SIGINT', 3: 'SIGQUIT', 4: 'SIGILL', 5: 'SIGTRAP', 6: 'SIGABRT', 7: 'SIGBUS', 8: 'SIGFPE',
  9: 'SIGKILL', 10: 'SIGUSR1', 11: 'SIGSEGV', 13: 'SIGPIPE', 14: 'SIGALRM', 15: 'SIGTERM', 24: 'SIGXCPU',
  25: 'SIGXFSZ', 31: 'SIGSYS',
}
const ABOUT_SIGNAL = {
  6: 'it gave up by itself (abort)', 8: 'a bad calculation', 11: 'it touched memory that is not its own', 15: 'it was asked to end',
}

const LIMITED = {
  wall_timeout: ['timeout', (v) => `it ran longer than ${amount(v)} s`],
  cpu_limit: ['cpu_seconds', (v) => `it used more than ${amount(v)} s of CPU time`],
  out_of_memory: ['memory_mb', (v) => `it used more than ${amount(v)} MB of memory`],
  process_limit: ['processes', (v) => `it wanted more than ${amount(v)} processes`],
  storage_limit: ['storage_mb', (v) => `it wrote more than ${amount(v)} MB of files`],
}

const PLAIN = {
  output_limit: 'Stopped: it handed back more output than allowed',
  syscall_denied: 'Stopped: it made a system call that the sandbox refuses',
  dependency_error: 'Not started: a requirement could not be installed',
  upload_error: 'Not started: the upload cannot run as it is',
  cancelled: 'Cancelled',
  expired: 'Expired before it could run',
  host_pressure: 'Stopped: this server ran short of memory',
  server_fault: 'Our fault, not yours; your quota was given back',
}

const BUILD = 'this was the build command; the entrypoint did not run'

export function headline(job) {
  const { exit_reason: reason, meta = {}, limits = {}, evidence: facts = [] } = job
  if (reason === 'exited') return 'Completed'
  if (reason === 'nonzero_exit') return `${facts.includes(BUILD) ? 'The build failed' : 'Failed'} with exit code ${meta.exit_code ?? '?'}`
  if (reason === 'signaled') {
    const name = SIGNALS[meta.signal] ?? `signal ${meta.signal}`
    const about = ABOUT_SIGNAL[meta.signal]
    return `Killed by ${name}${about ? `: ${about}` : ''}`
  }
  if (LIMITED[reason]) {
    const [key, sentence] = LIMITED[reason]
    return limits[key] == null ? `Stopped: over its ${key} limit` : `Stopped: ${sentence(limits[key])}`
  }
  return PLAIN[reason] ?? (job.status === 'completed' ? 'Completed' : 'Failed')
}

/** What was measured, without what the headline says already. */
export const evidence = ({ exit_reason: reason, evidence: facts }) =>
  (reason === 'nonzero_exit' ? facts.filter((fact) => fact !== BUILD && !/^exit status \d+$/.test(fact)) : facts)

const nice = (key, value) => (key === 'memory_mb' ? Math.ceil(value / 64) * 64 : Math.ceil(value))

/** {key, from, to}: raise it; {key, from, to: null}: it is at the maximum; null: not a limit's doing. */
export function remedy(job, maximum) {
  const limited = LIMITED[job.exit_reason]
  if (!limited) return null
  const [key] = limited
  const from = job.limits?.[key], top = maximum?.[key]
  if (from == null) return null
  const to = Math.min(nice(key, from < 8 ? from * 4 : from * 2), top ?? Infinity)
  return { key, from, to: to > from ? to : null }
}

export const raiseLabel = ({ key, to }) => ({
  timeout: `Raise wall time to ${to} s`,
  cpu_seconds: `Raise CPU time to ${to} s`,
  memory_mb: `Raise memory to ${to} MB`,
  processes: `Raise to ${to} processes`,
  storage_mb: `Raise storage to ${to} MB`,
})[key]
