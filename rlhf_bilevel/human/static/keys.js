/** Single keys, which a person may turn off for good. */

import { element } from "./dom.js";

/**
 * Does what a key stands for, once however long it is held. Keys have the names of ``KeyboardEvent.key``, letters small;
 * "Shift+" comes before the name where it must be held, too.
 *
 * @param {Record<string, () => void>} actions
 */
export function listen(actions) {
  const wanted = element("keys", HTMLInputElement);
  const use = () => {
    localStorage.setItem("single-keys", wanted.checked ? "on" : "off");
    document.body.classList.toggle("no-keys", !wanted.checked);
  };
  wanted.checked = localStorage.getItem("single-keys") !== "off";
  wanted.addEventListener("change", use);
  use();

  addEventListener("keydown", (event) => {
    if (!wanted.checked || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const target = /** @type {Element} */ (event.target);
    if (target.matches("input, select, textarea")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key === "Enter" || (key === " " && target.closest("button, a"))) return; // the button's own
    const shifted = `Shift+${key}`, name = event.shiftKey && Object.hasOwn(actions, shifted) ? shifted : key;
    if (!Object.hasOwn(actions, name)) return;
    event.preventDefault();
    if (!event.repeat) actions[name]();
  });

  // A button that was clicked gives the keys back: else Space would press it again
  addEventListener("click", ({ detail, target }) => {
    const button = detail > 0 && target instanceof Element && target.closest("main button, header button");
    if (button instanceof HTMLElement) button.blur();
  });
}
