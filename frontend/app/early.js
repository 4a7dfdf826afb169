// What cannot wait for the modules: a chosen theme, before anything is painted in the other
// one, and the first question to the server, whose answer travels while they do.
try {
  const theme = localStorage.getItem('sandrun.theme')
  if (theme) document.documentElement.dataset.theme = theme
} catch { /* storage is switched off: the system's theme it is */ }

// The same request as api.js's; a static server answers with the page, which is no answer.
globalThis.firstAnswer = fetch('/', {
  headers: { Accept: 'application/json' }, cache: 'no-store', credentials: 'omit', referrerPolicy: 'no-referrer', priority: 'high',
}).then((response) => (response.ok ? response.json() : null)).catch(() => null)
