// Tagged templates over Vue's h(): no compiler, so no eval under a strict CSP.
import { h } from '../vendor/vue.runtime.esm-browser.prod.js'
import htm from '../vendor/htm.module.js'

function element(type, props, ...children) {
  this[0] = 3 // htm would hand out one cached node twice; Vue wants a fresh one per render
  if (typeof type === 'string') return h(type, props, children)
  return h(type, props, children.length ? { default: () => children } : undefined)
}

export const html = htm.bind(element)
