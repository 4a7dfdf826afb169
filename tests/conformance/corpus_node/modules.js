// file: lib/index.js=exports.parent = module.parent && module.parent.filename; exports.main = require.main.filename;
// args: x --y
console.log(require('./lib'), process.argv.slice(2));
require('./missing');
