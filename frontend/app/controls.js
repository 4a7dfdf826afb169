// Small controls that several views share.

import { nextTick, onBeforeUnmount, ref, h } from '../vendor/vue.runtime.esm-browser.prod.js'
import { html } from './html.js'
import { icon } from './icons.js'

let ids = 0

/** A button that opens a panel below itself. Esc and a click elsewhere close it. */
const Popover = {
  props: { label: String, name: String, icon: String, align: { default: 'end' }, kind: { default: 'quiet' }, disabled: Boolean, caret: { default: true } },
  setup(props, { slots, expose }) {
    const open = ref(false), root = ref(null), id = `popover-${++ids}`
    const outside = (event) => { if (!root.value?.contains(event.target)) close(false) }
    function close(refocus = true) {
      if (!open.value) return
      open.value = false
      removeEventListener('pointerdown', outside, true)
      if (refocus) root.value?.querySelector('button')?.focus()
    }
    async function toggle() {
      if (open.value) return close()
      open.value = true
      addEventListener('pointerdown', outside, true)
      await nextTick()
      root.value.querySelector('.popover')?.querySelector('button, input, select, [tabindex]')?.focus()
    }
    function onKeydown(event) {
      if (event.key === 'Escape' && open.value) {
        event.stopPropagation()
        close()
      } else if (['ArrowDown', 'ArrowUp'].includes(event.key) && open.value && event.target.matches('.menu-item')) {
        event.preventDefault()
        const items = [...root.value.querySelectorAll('.menu-item:not(:disabled)')]
        const step = event.key === 'ArrowDown' ? 1 : -1
        items[(items.indexOf(event.target) + step + items.length) % items.length]?.focus()
      }
    }
    function onFocusout(event) {
      if (event.relatedTarget && !root.value.contains(event.relatedTarget)) close(false)
    }
    onBeforeUnmount(() => close(false))
    expose({ close })
    return () => html`<div class="popover-root" ref=${root} onKeydown=${onKeydown} onFocusout=${onFocusout}>
      <button type="button" class=${['button', props.kind]} aria-expanded=${open.value} aria-controls=${id}
        aria-label=${props.name} title=${props.name} disabled=${props.disabled} onClick=${toggle}>
        ${props.icon && icon(props.icon)}${props.label && html`<span>${props.label}</span>`}
        ${props.caret && icon('down', 12)}
      </button>
      ${open.value && html`<div class=${['popover', props.align]} id=${id}>${slots.default?.({ close })}</div>`}
    </div>`
  },
}

/** `content` gets {close}. */
export const popover = (props, content) => h(Popover, props, { default: content })

export const menuItem = (label, run, { icon: name, note, danger, disabled } = {}) =>
  html`<button type="button" class=${['menu-item', { danger }]} onClick=${run} disabled=${disabled}>
    ${name && icon(name)}<span>${label}</span>${note && html`<small>${note}</small>`}
  </button>`

/** A modal of the browser's own: it keeps the focus inside and closes on Esc. */
export const Dialog = {
  props: { title: String, onClose: Function, wide: Boolean },
  setup(props, { slots }) {
    const element = ref(null), id = `dialog-${++ids}`
    const mounted = (vnode) => { if (!vnode.el.open) vnode.el.showModal() }
    const onClick = (event) => { if (event.target === element.value) element.value.close() }
    return () => html`<dialog ref=${element} class=${{ wide: props.wide }} aria-labelledby=${id}
      onVnodeMounted=${mounted} onClose=${() => props.onClose()} onClick=${onClick}>
      <div class="dialog-body">
        <header><h2 id=${id}>${props.title}</h2>
          <button type="button" class="button quiet square" aria-label="Close" onClick=${() => element.value.close()}>${icon('close')}</button>
        </header>
        ${slots.default?.()}
      </div>
    </dialog>`
  },
}

export const meter = (share, kind = '') => {
  const percent = Math.max(0, Math.min(1, share || 0)) * 100
  return html`<span class=${['meter', kind]} aria-hidden="true"><span style=${{ transform: `scaleX(${percent / 100})` }}></span></span>`
}

/** A button that asks once more, in place. */
export const ConfirmButton = {
  props: { label: String, sure: String, icon: String, kind: { default: 'quiet' }, onConfirm: Function },
  setup(props) {
    const armed = ref(false)
    let timer = 0
    function press() {
      clearTimeout(timer)
      if (armed.value) {
        armed.value = false
        props.onConfirm()
        return
      }
      armed.value = true
      timer = setTimeout(() => { armed.value = false }, 4000)
    }
    onBeforeUnmount(() => clearTimeout(timer))
    return () => html`<button type="button" class=${['button', props.kind, { danger: armed.value }]} onClick=${press}
      onBlur=${() => { armed.value = false }}>${icon(props.icon)}<span>${armed.value ? props.sure : props.label}</span></button>`
  },
}
