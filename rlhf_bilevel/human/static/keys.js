/** Single keys, which a person may turn off for good. */

import { element } from "./dom.js";

/**
 * Does what a key stands for, once however long it is held. Keys have the names of ``KeyboardEvent.key``, letters small.
 *
 * @param {Record<string, () => void>} actions
 */
export function listen(actions) {
  const wanted = element("keys", HTMLInputElement), help = element("help", HTMLDialogElement);
  const use = () => {
    localStorage.setItem("single-keys", wanted.checked ? "on" : "off");
    document.body.classList.toggle("no-keys", !wanted.checked);
  };
  wanted.checked = localStorage.getItem("single-keys") !== "off";
  wanted.addEventListener("change", use);
  use();

  addEventListener("keydown", (event) => {
    if (!wanted.checked || event.ctrlKey || event.metaKey || event.altKey || help.open) return;
    const target = /** @type {Element} */ (event.target);
    if (target.matches("input, select")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key === "Enter" || (key === " " && target.closest("button, a"))) return; // the button's own
    if (!Object.hasOwn(actions, key)) return;
    event.preventDefault();
    if (!event.repeat) actions[key]();
  });

  // A button that was clicked gives the keys back: else Space would press it again
  addEventListener("click", ({ detail, target }) => {
    const button = detail > 0 && target instanceof Element && target.closest("main button, header button");
    if (button instanceof HTMLElement) button.blur();
  });
}
