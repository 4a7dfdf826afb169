/* The node that starts before its job is there. Runs as: the job, confined. I/O.

   `node -r warm_node.js door 3`: node loads us when it has started and before it runs
   its main script. We touch what a small script will touch, say `+` on descriptor 3
   and block on it. The order is one JSON datagram: script, args, env, cwd. We set
   what is the job's, take ourselves out of every list, and return; node then runs the
   script by its own main loader, CommonJS or ESM as the file asks.

   That loader has fixed the name of its script by now, but calls
   `Module.runMain(name)`. So for one look-up `runMain` is a getter: it puts the
   original back and answers with it bound to the job's script. A bound function has
   no frame of its own: stack traces are those of `node main.js`.

   A Worker inherits `-r` and loads us again: there we only take ourselves out. */
'use strict';

const fs = require('fs');
const path = require('path');
const Module = require('module');
const { isMainThread } = require('worker_threads');

const ORDER_MAX_BYTES = 512 * 1024; // a datagram holds at most 208 KiB
const READY = '+';

function leaveNoTrace() {
  delete require.cache[__filename];
  process.execArgv = process.execArgv.filter(
    (argument, index, all) => argument !== __filename && all[index + 1] !== __filename);
  Object.defineProperty(process, '_preload_modules',
    { value: [], enumerable: true, configurable: true });
  delete Module._pathCache[`${__filename}\x00`];
  for (const key of Object.keys(Module._pathCache)) {
    if (Module._pathCache[key] === __filename) delete Module._pathCache[key];
  }
}

function warmUp() {
  const source = 'exports.f = (a, ...b) => `${a} ${b}`; class C { x = 1 } new C();' +
    'JSON.stringify({ a: [1, "b"] }); [3, 1].sort().map((x) => x + 1); /a+/.test("caat");';
  const module = new Module('/warm.js');
  module._compile(source, '/warm.js');
  module.exports.f(1, 2);
  require('util').inspect({ a: [1, 'x'], b: new Map() });
}

function park(fd) {
  try {
    if (typeof Module.runMain !== 'function') throw new Error('no Module.runMain in this node');
    warmUp();
    fs.writeSync(fd, READY);
  } catch (error) {
    fs.writeSync(fd, JSON.stringify(['preload', 0, String(error)]));
    process.reallyExit(1);
  }
  const buffer = Buffer.allocUnsafeSlow(ORDER_MAX_BYTES);
  const length = fs.readSync(fd, buffer, 0, buffer.length, null);
  fs.closeSync(fd);
  if (length === 0) process.reallyExit(0); // nobody needs us
  return JSON.parse(buffer.toString('utf8', 0, length));
}

function become(order) {
  for (const name of Object.keys(process.env)) {
    if (process.env[name] !== order.env[name]) delete process.env[name];
  }
  for (const name of Object.keys(order.env)) {
    if (process.env[name] !== order.env[name]) process.env[name] = order.env[name];
  }
  process.chdir(order.cwd || '/work');
  const script = path.resolve(order.script);
  process.argv.splice(1, Infinity, script, ...(order.args || []));
  return script;
}

function runInstead(script) {
  const original = Module.runMain;
  Object.defineProperty(Module, 'runMain', {
    configurable: true,
    enumerable: true,
    get() {
      Object.defineProperty(Module, 'runMain',
        { value: original, configurable: true, enumerable: true, writable: true });
      return original.bind(Module, script);
    },
  });
}

if (isMainThread) runInstead(become(park(Number(process.argv[2]))));
leaveNoTrace();
