/** One pair to be looked at: both clips on one clock, in a loop. */

import { clipOf, sceneOf } from "./clips.js";
import { element } from "./dom.js";
import { ClipViewer } from "./viewer.js";

const HOLD = 0.4; // seconds for which the last frame stays before clips begin again

const places = /** @type {HTMLElement[]} */ ([...document.querySelectorAll(".view")]);
const viewers = places.map((place) => new ClipViewer(place, sceneOf));
const button = element("play", HTMLButtonElement);
let playing = !matchMedia("(prefers-reduced-motion: reduce)").matches;
let at = 0, last = 0; // seconds, milliseconds

/** @param {boolean} wanted */
function play(wanted) {
  playing = wanted;
  button.textContent = playing ? "Pause" : "Play";
}

/** @param {number} time milliseconds */
function tick(time) {
  if (playing) at += (time - last) / 1000;
  last = time;
  const seconds = Math.max(...viewers.map((viewer) => (viewer.frames - 1) / viewer.fps));
  if (at > seconds + HOLD) at = 0;
  for (const viewer of viewers) viewer.show((at * viewer.fps) / Math.max(viewer.frames - 1, 1));
  requestAnimationFrame(tick);
}

for (const viewer of viewers) viewer.camera = viewers[0].camera;
await Promise.all(viewers.map(async (viewer, side) => viewer.load(await clipOf(String(places[side].dataset.clip)))));
button.addEventListener("click", () => play(!playing));
play(playing);
requestAnimationFrame((time) => tick((last = time)));
