console.log(process.argv, process.execArgv, process.env, process.cwd(), require.main === module, module.paths, Object.keys(require.cache), process.title, process._preload_modules);
console.log(Object.keys(require('module')), require('module').runMain, process.argv0, process.execPath);
const {Worker}=require('worker_threads');
console.log(require('fs').readdirSync('/proc/self/fd').includes('3'), process.listenerCount('exit'), process._getActiveHandles().length);
new Worker('console.log("w", process.execArgv, process.argv, Object.keys(require.cache))',{eval:true}).on('exit',()=>
require('child_process').execFile(process.execPath,['-p','process.execArgv'],(e,o)=>console.log(o)));
process.stdin.on('data',d=>console.log(String(d)));
process.on('exit',c=>console.log('exit',c, require('module').runMain.name));
