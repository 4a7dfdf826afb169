// What cannot wait for the modules: a chosen theme, before anything is painted in the other
// one. sandrun hands this out inside the page, so that nothing waits for a file of its own.
try {
  const theme = localStorage.getItem('sandrun.theme')
  if (theme) document.documentElement.dataset.theme = theme
} catch { /* storage is switched off: the system's theme it is */ }
