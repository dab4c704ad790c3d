/** What all scripts of the page need. */

/**
 * The element of an id, which is of a type: the page's template and its scripts belong together.
 *
 * @template {HTMLElement} T
 * @param {string} id @param {new () => T} type
 */
export function element(id, type) {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new Error(`the page has no ${type.name} with the id ${id}`);
  return found;
}

/** @param {number} seconds @returns {Promise<void>} */
export const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

/** @param {EventTarget} target @param {string} name @returns {Promise<void>} */
export const once = (target, name) => new Promise((resolve) => target.addEventListener(name, () => resolve(), { once: true }));
