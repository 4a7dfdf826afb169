// stdin: line one\nline two
require('readline').createInterface({ input: process.stdin }).on('line', (l) => console.log('>', l));
