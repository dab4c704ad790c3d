/**
 * Plays the pair in front, and draws the next one behind it. One clock moves both clips of a pair.
 *
 * @typedef {import("./api.js").Pair} Pair
 */

import { clipOf, sceneOf } from "./clips.js";
import { element } from "./dom.js";
import { ClipViewer } from "./viewer.js";

const SLOW = 0.04; // seconds a frame, on average, above which clips are drawn with fewer pixels
const COARSEST = 0.5; // of the pixels along each side
const HOLD = 0.4; // seconds for which the last frame stays before clips begin again

/** Two clips side by side. */
class Stage {
  /** @param {HTMLElement} place */
  constructor(place) {
    this.place = place;
    this.viewers = [...place.querySelectorAll(".view")].map((view) => new ClipViewer(view, sceneOf));
    /** @type {Pair | null} */
    this.pair = null;
    this.drawn = Promise.resolve();
  }

  /** Loads a pair and draws its first frame; ``drawn`` tells when, and is rejected where that fails. @param {Pair} pair */
  prepare(pair) {
    if (this.pair === pair) return;
    this.pair = pair;
    delete this.place.dataset.drawn;
    this.drawn = Promise.all([pair.left, pair.right].map(async (id, side) => this.viewers[side].load(await clipOf(id)))).then(() => {
      if (this.pair === pair) this.place.dataset.drawn = pair.query;
    });
    this.drawn.catch(() => {}); // who waits for it is told
  }

  /** From the first frame to the last, of the longer clip. */
  get seconds() {
    return Math.max(...this.viewers.map((viewer) => (viewer.frames - 1) / viewer.fps), 0.001);
  }

  /** Seconds of a frame. */
  get step() {
    return 1 / Math.max(...this.viewers.map((viewer) => viewer.fps));
  }

  /** @param {number} seconds */
  show(seconds) {
    for (const viewer of this.viewers) viewer.show((seconds * viewer.fps) / Math.max(viewer.frames - 1, 1));
  }
}

const scrubber = element("scrubber", HTMLInputElement);
const position = element("position", HTMLOutputElement);
const speed = element("speed", HTMLSelectElement);

const STILL = matchMedia("(prefers-reduced-motion: reduce)").matches;

export const player = {
  front: new Stage(element("stage-a", HTMLElement)),
  back: new Stage(element("stage-b", HTMLElement)),
  isShown: false, // whether the pair in front is to be judged; only then it moves
  playing: !STILL,
  _at: 0, // seconds from the clips' first frame, up to their length and HOLD
  _held: false, // while the scrubber is being dragged
  _last: 0, // milliseconds
  _frame: 0, // seconds that one takes, a moving average
  _detail: 1,

  /** Brings the pair behind to the front, at its first frame. It plays, also where the one before was paused. */
  swap() {
    [this.front, this.back] = [this.back, this.front];
    for (const stage of [this.front, this.back]) {
      stage.place.classList.toggle("front", stage === this.front);
      stage.place.inert = stage !== this.front;
    }
    this.isShown = true;
    scrubber.max = String(Math.round(this.front.seconds / this.front.step));
    this.seek(0);
    if (!STILL) this.play(true);
  },

  /** @param {boolean} playing */
  play(playing) {
    this.playing = playing;
    element("play-word", HTMLElement).textContent = playing ? "Pause" : "Play";
  },

  toggle() {
    this.play(!this.playing);
  },

  restart() {
    this.seek(0);
    this.play(true);
  },

  /** @param {number} seconds */
  seek(seconds) {
    this._at = seconds;
    if (this.isShown) this._draw();
  },

  _draw() {
    const seconds = Math.min(this._at, this.front.seconds);
    this.front.show(seconds);
    scrubber.value = String(seconds / this.front.step);
    const told = `${seconds.toFixed(1)} / ${this.front.seconds.toFixed(1)} s`;
    if (position.value !== told) position.value = told;
    scrubber.setAttribute("aria-valuetext", told);
  },

  /** @param {number} time milliseconds */
  _tick(time) {
    const frame = Math.min((time - this._last) / 1000, 0.1), rate = Number(speed.value);
    this._last = time;
    this._frame += (frame - this._frame) / 32;
    if (this._frame > SLOW && !document.hidden) this._coarsen();
    if (this.isShown && this.playing && !this._held) {
      this._at += frame * rate;
      if (this._at > this.front.seconds + HOLD * rate) this._at = 0;
      this._draw();
    }
    requestAnimationFrame((next) => this._tick(next));
  },

  /** Where a machine draws slowly, as one without a graphics card does: clips that move tell more than sharp ones. */
  _coarsen() {
    this._frame = 0;
    if (this._detail <= COARSEST) return;
    this._detail -= 0.25;
    for (const viewer of [...this.front.viewers, ...this.back.viewers]) viewer.detail = this._detail;
  },

  /** Listens to its controls, and begins. */
  start() {
    const [{ camera }] = this.front.viewers; // clips are looked at from the same side, and so are the pairs to come
    for (const { viewers, place } of [this.front, this.back]) {
      for (const viewer of viewers) viewer.camera = camera;
      for (const turn of ["pointermove", "wheel", "dblclick"]) place.addEventListener(turn, () => this.playing || this._draw());
    }
    element("play", HTMLElement).addEventListener("click", () => this.toggle());
    element("restart", HTMLElement).addEventListener("click", () => this.restart());
    scrubber.addEventListener("input", () => this.seek(Number(scrubber.value) * this.front.step));
    scrubber.addEventListener("pointerdown", () => (this._held = true));
    for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => (this._held = false));
    // What was dragged or chosen gives the keys back: else arrows would move it
    scrubber.addEventListener("pointerup", () => scrubber.blur());
    speed.addEventListener("change", () => speed.blur());
    this.play(this.playing);
    requestAnimationFrame((time) => this._tick(time));
  },
};
