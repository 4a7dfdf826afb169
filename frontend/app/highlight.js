// A light syntax colouring for the editor and previews: [{text, kind}]. Pure.

const words = (text) => new Set(text.split(' '))
const PYTHON = words('and as assert async await break class continue def del elif else except finally for from global if import in is lambda match case nonlocal not or pass raise return try while with yield True False None self')
const JS = words('async await break case catch class const continue default delete do else export extends finally for from function if import in instanceof let new of return static super switch this throw try typeof var void while yield true false null undefined')
const SHELL = words('if then else elif fi for in do done while until case esac function return exit local export set echo printf read cd test shift trap')
const RUBY = words('and begin break case class def do else elsif end ensure false for if in module next nil not or redo rescue retry return self super then true undef unless until when while yield puts require')
const PERL = words('my our local use strict warnings sub return if elsif else unless while until for foreach last next print printf say open close or and not die package')
const PHP = words('abstract and array as break case catch class const continue declare default do echo else elseif extends final finally fn for foreach function global if implements interface match namespace new null or private protected public return static switch throw true false try use while yield')
const LUA = words('and break do else elseif end false for function goto if in local nil not or repeat return then true until while')
const GO = words('break case chan const continue default defer else fallthrough for func go goto if import interface map package range return select struct switch type var true false nil string int error')
const R = words('if else repeat while function for in next break TRUE FALSE NULL Inf NaN NA library return')
const C = words('auto break case char const continue default do double else enum extern float for goto if inline int long return short signed sizeof static struct switch typedef union unsigned void while include define bool class namespace public private template using new delete')

const STRING = String.raw`"(?:\\.|[^"\\\n])*"?|'(?:\\.|[^'\\\n])*'?`
const HASH = String.raw`#[^\n]*`
const SLASH = String.raw`\/\/[^\n]*|\/\*[\s\S]*?(?:\*\/|$)`
const TRIPLE = String.raw`"""[\s\S]*?(?:"""|$)|'''[\s\S]*?(?:'''|$)`
const BACKTICK = String.raw`\`(?:\\.|[^\`\\])*(?:\`|$)`

const grammar = (comment, string, keywords) => ({
  keywords,
  pattern: new RegExp(
    `(?<comment>${comment})|(?<string>${string})|(?<number>\\b\\d[\\w.]*)|(?<word>[A-Za-z_$][\\w$]*)(?<call>(?=\\())?`, 'g'),
})

const GRAMMARS = {
  py: grammar(HASH, `[rbfuRBFU]{0,2}(?:${TRIPLE}|${STRING})`, PYTHON),
  js: grammar(SLASH, `${BACKTICK}|${STRING}`, JS),
  sh: grammar(String.raw`(?<![\w$\{])#[^\n]*`, String.raw`"(?:\\.|[^"\\])*"?|'[^']*'?`, SHELL),
  rb: grammar(HASH, STRING, RUBY),
  pl: grammar(HASH, STRING, PERL),
  php: grammar(`${HASH}|${SLASH}`, STRING, PHP),
  lua: grammar(String.raw`--[^\n]*`, STRING, LUA),
  go: grammar(SLASH, `${BACKTICK}|${STRING}`, GO),
  r: grammar(HASH, STRING, R),
  c: grammar(SLASH, STRING, C),
  json: grammar('(?!)', STRING, words('true false null')),
  toml: grammar(HASH, STRING, words('true false')),
}
const ALIASES = {
  mjs: 'js', cjs: 'js', ts: 'js', jsx: 'js', tsx: 'js', bash: 'sh', zsh: 'sh', R: 'r', h: 'c', cpp: 'c', cc: 'c',
  rs: 'c', java: 'c', ini: 'toml', cfg: 'toml', yml: 'toml', yaml: 'toml', pm: 'pl', pyi: 'py', ipynb: 'json',
}
const MAX_CHARACTERS = 60_000 // beyond that a keystroke would be felt

export function highlight(text, ending) {
  const { pattern, keywords } = GRAMMARS[ALIASES[ending] ?? ending] ?? {}
  if (!pattern || text.length > MAX_CHARACTERS) return [{ text, kind: '' }]
  const found = []
  let at = 0
  pattern.lastIndex = 0
  for (let match; (match = pattern.exec(text));) {
    if (!match[0]) {
      pattern.lastIndex++
      continue
    }
    const { comment, string, number, word, call } = match.groups
    const kind = comment !== undefined ? 'comment' : string !== undefined ? 'string' : number !== undefined ? 'number'
      : keywords.has(word) ? 'keyword' : call !== undefined ? 'call' : ''
    if (!kind) continue
    if (match.index > at) found.push({ text: text.slice(at, match.index), kind: '' })
    found.push({ text: match[0], kind })
    at = pattern.lastIndex
  }
  if (at < text.length) found.push({ text: text.slice(at), kind: '' })
  return found
}
