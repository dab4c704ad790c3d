/** Stills: the middle of a clip as a small picture, drawn when it comes into sight. */

import { clipOf, sceneOf } from "./clips.js";
import { ClipViewer } from "./viewer.js";

/** @type {Map<Element, string>} */
const awaited = new Map(); // the clip of each that was not in sight yet
/** @type {ClipViewer[]} */
let drawn = [];

const sight = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    const clip = awaited.get(target);
    if (!isIntersecting || !clip) continue;
    forget(target);
    draw(target, clip).catch(() => {}); // what cannot be had stays empty
  }
});

/** @param {Element} place */
function forget(place) {
  sight.unobserve(place);
  awaited.delete(place);
}

/** @param {Element} place @param {string} clip its id */
async function draw(place, clip) {
  const viewer = new ClipViewer(place, sceneOf);
  drawn.push(viewer);
  await viewer.load(await clipOf(clip));
  viewer.show(0.5);
}

/** A place for the still of a clip. @param {string} clip its id @param {string} name what it is called by who cannot see it */
export function still(clip, name) {
  const place = document.createElement("div");
  place.className = "still";
  place.setAttribute("role", "img");
  place.setAttribute("aria-label", name);
  awaited.set(place, clip);
  sight.observe(place);
  return place;
}

/** Forgets all stills. */
export function clearStills() {
  for (const place of awaited.keys()) forget(place);
  for (const viewer of drawn) viewer.dispose();
  drawn = [];
}
