console.log(process.argv, process.execArgv, require.main === module, module.paths, __filename, Object.keys(require.cache), module.children.length, module.id, module.parent);
console.log(new Error('x').stack);
