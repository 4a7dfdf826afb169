console.log(process.argv, import.meta.url, new Error('x').stack);
