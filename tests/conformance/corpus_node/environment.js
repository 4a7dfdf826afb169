// env: TZ=America/New_York
// env: GREETING=grüß
console.log(process.env, new Date(0).toString(), Intl.DateTimeFormat().resolvedOptions().timeZone);
