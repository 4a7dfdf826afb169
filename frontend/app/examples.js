// A runnable first program for every interpreter that the server has. Data.

const PYTHON_REPORT = `import csv, json, math

# Files that a program writes are handed back to you.
wave = [(x, round(math.sin(x / 8), 4)) for x in range(101)]

with open("wave.csv", "w", newline="") as file:
    csv.writer(file).writerows([("x", "sin"), *wave])

with open("summary.json", "w") as file:
    peak = max(y for _, y in wave)
    json.dump({"points": len(wave), "peak": peak}, file)

points = " ".join(f"{6*x},{100 - 80*y}" for x, y in wave)
with open("wave.svg", "w") as file:
    file.write(f"""\\
<svg xmlns="http://www.w3.org/2000/svg"
     viewBox="-20 0 640 200" fill="none">
  <rect x="-20" width="640" height="200" fill="#fbf7ef"/>
  <path d="M0 100H600" stroke="#d8cdb8"/>
  <polyline points="{points}" stroke="#b4690e"
            stroke-width="3"/>
</svg>""")

print(f"{len(wave)} points, peak {peak}")
`

const PYTHON_COLOURS = `import sys, time

names = ["red", "green", "yellow", "blue", "magenta", "cyan"]
for code, name in enumerate(names, start=31):
    print(f"\\x1b[{code}m●\\x1b[0m \\x1b[1m{name}\\x1b[0m")

for percent in range(0, 101, 2):
    bar = "█" * (percent // 4)
    print(f"\\r{bar:░<25} {percent:3d}%", end="", flush=True)
    time.sleep(0.04)
print()
print("this line went to stderr", file=sys.stderr)
`

const PYTHON_LIMIT = `# This one asks for more memory than it has.
# Watch how it ends.
blocks = []
for n in range(1, 100):
    blocks.append(bytearray(16 * 1024 * 1024))
    print(f"{n * 16} MB held", flush=True)
`

const PYTHON_PLOT = `import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

x = np.linspace(0, 4 * np.pi, 600)
fig, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
for k in range(1, 6):
    ax.plot(x, np.sin(x + k / 3) / k, label=f"k = {k}")
ax.legend(frameon=False)
ax.spines[["top", "right"]].set_visible(False)
fig.savefig("plot.png", dpi=160)
print("saved plot.png")
`

const ONE_EACH = {
  node: ['index.js', `const { writeFileSync } = require('node:fs')

const primes = []
for (let n = 2; primes.length < 20; n++) {
  if (primes.every((p) => n % p)) primes.push(n)
}
console.log(primes.join(' '))
writeFileSync('primes.json', JSON.stringify(primes, null, 2))
`],
  bash: ['main.bash', `#!/usr/bin/env bash
set -euo pipefail

echo "running as $(id -un) in $PWD on $(uname -sr)"
for i in {1..5}; do
  printf '%d\\t%d\\n' "$i" "$((i * i))"
done | tee squares.tsv
`],
  sh: ['main.sh', `#!/bin/sh
set -eu

echo "hello from $(uname -sm)"
date -u > when.txt
ls -l
`],
  perl: ['main.pl', `use strict;
use warnings;

my %count;
$count{$_}++ for split //, "the quick brown fox jumps over the lazy dog";
print "$_ $count{$_}\\n" for sort { $count{$b} <=> $count{$a} || $a cmp $b } grep { /\\w/ } keys %count;
`],
  ruby: ['main.rb', `squares = (1..10).to_h { |n| [n, n * n] }
squares.each { |n, square| puts format("%3d %5d", n, square) }
File.write("squares.txt", squares.map { |pair| pair.join("\\t") }.join("\\n"))
`],
  Rscript: ['main.R', `x <- seq(0, 4 * pi, length.out = 200)
cat(sprintf("mean of sin: %.4f\\n", mean(sin(x))))
write.csv(data.frame(x = x, y = sin(x)), "wave.csv", row.names = FALSE)
`],
  php: ['main.php', `<?php
$words = explode(' ', 'to be or not to be');
$counts = array_count_values($words);
arsort($counts);
print_r($counts);
file_put_contents('counts.json', json_encode($counts, JSON_PRETTY_PRINT));
`],
  lua: ['main.lua', `local function fib(n)
  local a, b = 0, 1
  for _ = 1, n do a, b = b, a + b end
  return a
end

for n = 1, 20 do io.write(fib(n), " ") end
print()
`],
  go: ['main.go', `package main

import (
	"fmt"
	"os"
)

func main() {
	for n := 1; n <= 10; n++ {
		fmt.Printf("%2d %4d\\n", n, n*n)
	}
	os.WriteFile("done.txt", []byte("ok\\n"), 0o644)
}
`],
}

const NAMES = {
  python3: 'Python', node: 'JavaScript', bash: 'Bash', sh: 'POSIX shell', perl: 'Perl', ruby: 'Ruby',
  Rscript: 'R', php: 'PHP', lua: 'Lua', go: 'Go',
}

export const languageName = (interpreter) => NAMES[interpreter] ?? interpreter

const python = (id, title, code, form = {}) => ({ id, title, interpreter: 'python3', path: 'main.py', code, form })

/** All examples that make sense on this server, the first one first. */
export function examplesFor(interpreters, environments) {
  const has = (name) => interpreters.some((found) => found.name === name)
  const found = []
  if (!interpreters.length || has('python3')) {
    found.push(python('report', 'Python: a table, a chart and data', PYTHON_REPORT))
    const plots = environments.find(({ packages }) => packages && 'matplotlib' in packages)
    if (plots) {
      const form = plots.name === 'default' ? {} : { environment: plots.name }
      found.push(python('plot', 'Python: a matplotlib plot', PYTHON_PLOT, form))
    }
    found.push(python('colours', 'Python: colours and a progress bar', PYTHON_COLOURS))
    found.push(python('limit', 'Python: over the memory limit', PYTHON_LIMIT))
  }
  for (const { name } of interpreters) {
    const example = ONE_EACH[name]
    if (example) found.push({ id: name, title: languageName(name), interpreter: name, path: example[0], code: example[1], form: {} })
  }
  return found
}
