// Runs before the first paint (a classic script), so that a chosen theme never flashes.
try {
  const theme = localStorage.getItem('sandrun.theme')
  if (theme) document.documentElement.dataset.theme = theme
} catch { /* storage is switched off: the system's theme it is */ }
