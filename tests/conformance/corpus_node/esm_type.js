// file: package.json={"type":"module"}
import fs from "fs";
console.log(import.meta.url, process.argv, await 1, typeof require, fs.readdirSync("."));
throw new Error("esm");
