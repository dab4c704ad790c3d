/**
 * Episodes of one run, or of two side by side, beside the reward of each step. One clock moves all of it.
 *
 * What is shown is in the page itself (human/clips/page.py):
 *
 * @typedef {import("./scene.js").Clip} Clip
 * @typedef {import("./scene.js").Scene} Scene
 *
 * @typedef {object} Episode
 * @property {Clip} clip whose frame t is what stood before step t
 * @property {number[]} truth the environment's reward of each step
 * @property {number[] | null} learnt the reward model's, if there is one
 * @property {boolean | null} success at any step, where the environment speaks of it
 *
 * @typedef {{scenes: Record<string, Scene>, shows: Episode[][]}} Told
 */

import { element } from "./dom.js";
import { ClipViewer } from "./viewer.js";

const HOLD = 0.4; // seconds for which the last frame stays before the episode begins again
const [WIDTH, HEIGHT, MARGIN] = [1000, 100, 6]; // of a curve's own units, which the page stretches

/** @type {Told} */
const told = JSON.parse(element("told", HTMLScriptElement).text);

/** @param {Element} within @param {string} selector */
function part(within, selector) {
  const found = within.querySelector(selector);
  if (!found) throw new Error(`the page has no ${selector}`);
  return found;
}

/** Short enough to be read while it changes. @param {number} value */
const short = (value) => (value && Math.abs(value) < 0.001 ? value.toExponential(1) : String(Number(value.toPrecision(4))));

/** @param {number[]} values */
const sum = (values) => values.reduce((total, value) => total + value, 0);

/** Least and most of all values; where they are the same, room around. @param {number[][]} curves @returns {[number, number]} */
function range(curves) {
  let [least, most] = [Infinity, -Infinity];
  for (const curve of curves) for (const value of curve) [least, most] = [Math.min(least, value), Math.max(most, value)];
  return least < most ? [least, most] : [least - 1, most + 1];
}

/** The reward of each step, and a cursor at now. */
class Curve {
  /** @param {Element} place @param {[number, number]} range of its height */
  constructor(place, [least, most]) {
    this.plot = part(place, "svg");
    this._line = part(place, ".line");
    this._cursor = part(place, ".cursor");
    this._now = part(place, ".now");
    this._sum = part(place, ".sum");
    this._least = least;
    this._most = most;
    part(place, ".least").textContent = short(least);
    part(place, ".most").textContent = short(most);
    part(place, ".zero").setAttribute("d", least < 0 && most > 0 ? `M0 ${this._height(0)}H${WIDTH}` : "");
    /** @type {number[]} */
    this._values = [];
    this._fps = this._seconds = 1;
  }

  /** @param {number[]} values @param {number} fps @param {number} seconds of its width */
  load(values, fps, seconds) {
    this._values = values;
    this._fps = fps;
    this._seconds = seconds;
    const points = values.map((value, step) => `${this._along(step / fps)} ${this._height(value)}`);
    this._line.setAttribute("d", `M${points.join("L")}`);
    this._sum.textContent = `sum ${short(sum(values))} in ${values.length} steps`;
  }

  /** @param {number} seconds */
  show(seconds) {
    const step = Math.min(this._values.length - 1, Math.floor(seconds * this._fps + 1e-6));
    this._cursor.setAttribute("d", `M${this._along(Math.min(seconds, (this._values.length - 1) / this._fps))} 0V${HEIGHT}`);
    this._now.textContent = short(this._values[step]);
  }

  /** @param {number} seconds */
  _along(seconds) {
    return Number((WIDTH * seconds / this._seconds).toFixed(2));
  }

  /** @param {number} value */
  _height(value) {
    return Number((HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - this._least) / (this._most - this._least)).toFixed(2));
  }
}

/** What one run shows. */
class Show {
  /** @param {Element} place @param {Episode[]} episodes @param {[number, number]} truths the range of true rewards */
  constructor(place, episodes, truths) {
    this.episodes = episodes;
    this.viewer = new ClipViewer(part(place, ".view"), async (id) => told.scenes[id]);
    this._outcome = part(place, ".outcome");
    const below = part(place, "[data-of=learnt]"), learnt = episodes.flatMap((episode) => (episode.learnt ? [episode.learnt] : []));
    this.truth = new Curve(part(place, "[data-of=truth]"), truths);
    this.learnt = learnt.length ? new Curve(below, range(learnt)) : null;
    if (!this.learnt) below.textContent = "No reward was learned until then.";
  }

  get curves() {
    return this.learnt ? [this.truth, this.learnt] : [this.truth];
  }

  /** From the first step to the last. @param {number} number */
  seconds(number) {
    const { clip, truth } = this.episodes[number];
    return (truth.length - 1) / clip.fps;
  }

  /** @param {number} number @param {number} seconds of the clock */
  async load(number, seconds) {
    const { clip, truth, learnt, success } = this.episodes[number];
    this._outcome.textContent = success === null ? "" : success ? " · success" : " · no success";
    this.truth.load(truth, clip.fps, seconds);
    if (learnt) this.learnt?.load(learnt, clip.fps, seconds);
    await this.viewer.load(clip);
  }

  /** @param {number} seconds */
  show(seconds) {
    this.viewer.show((seconds * this.viewer.fps) / Math.max(this.viewer.frames - 1, 1));
    for (const curve of this.curves) curve.show(seconds);
  }
}

const play = element("play", HTMLButtonElement);
const scrubber = element("scrubber", HTMLInputElement);
const position = element("position", HTMLElement);
const episode = element("episode", HTMLSelectElement);
const speed = element("speed", HTMLSelectElement);

const truths = range(told.shows.flatMap((episodes) => episodes.map(({ truth }) => truth)));
const places = [...document.querySelectorAll(".show")];
const shows = told.shows.map((episodes, number) => new Show(places[number], episodes, truths));
for (const { viewer } of shows) viewer.camera = shows[0].viewer.camera; // looked at from the same side

const clock = {
  playing: !matchMedia("(prefers-reduced-motion: reduce)").matches,
  at: 0, // seconds from the first step, up to ``seconds`` and HOLD
  seconds: 1, // of the longest episode
  step: 1, // seconds of a step, the shortest
  held: false, // while the scrubber is being dragged, or nothing is loaded
  last: 0, // milliseconds

  /** @param {boolean} playing */
  play(playing) {
    this.playing = playing;
    play.textContent = playing ? "Pause" : "Play";
  },

  /** @param {number} seconds */
  seek(seconds) {
    this.at = seconds;
    const shown = Math.min(seconds, this.seconds);
    for (const show of shows) show.show(shown);
    scrubber.value = String(Math.round(shown / this.step));
    const words = `${shown.toFixed(1)} of ${this.seconds.toFixed(1)} s`;
    if (position.textContent === words) return;
    position.textContent = words;
    scrubber.setAttribute("aria-valuetext", words);
  },

  /** @param {number} number of the episode */
  async load(number) {
    this.held = true;
    this.seconds = Math.max(...shows.map((show) => show.seconds(number)), 0.001);
    this.step = 1 / Math.max(...shows.map(({ episodes }) => episodes[number].clip.fps));
    scrubber.max = String(Math.round(this.seconds / this.step));
    await Promise.all(shows.map((show) => show.load(number, this.seconds)));
    this.seek(0);
    this.held = false;
    document.body.dataset.state = "ready";
  },

  /** @param {number} time milliseconds */
  tick(time) {
    const frame = Math.min((time - this.last) / 1000, 0.1), rate = Number(speed.value);
    this.last = time;
    if (this.playing && !this.held) {
      const at = this.at + frame * rate;
      this.seek(at > this.seconds + HOLD * rate ? 0 : at);
    }
    requestAnimationFrame((next) => this.tick(next));
  },
};

shows[0].episodes.forEach((_, number) => episode.add(new Option(String(number + 1), String(number))));
episode.addEventListener("change", () => clock.load(Number(episode.value)));
play.addEventListener("click", () => clock.play(!clock.playing));
element("restart", HTMLButtonElement).addEventListener("click", () => {
  clock.seek(0);
  clock.play(true);
});
scrubber.addEventListener("input", () => clock.seek(Number(scrubber.value) * clock.step));
scrubber.addEventListener("pointerdown", () => (clock.held = true));
for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => (clock.held = false));
for (const { plot } of shows.flatMap(({ curves }) => curves)) {
  plot.addEventListener("click", (event) => {
    const { left, width } = plot.getBoundingClientRect();
    clock.seek(clock.seconds * (/** @type {MouseEvent} */ (event).clientX - left) / width);
  });
}
for (const { viewer } of shows) { // what one is turned to, all are
  for (const turn of ["pointermove", "wheel", "dblclick"]) viewer.canvas.addEventListener(turn, () => clock.playing || clock.seek(clock.at));
}
clock.play(clock.playing);
await clock.load(0);
requestAnimationFrame((time) => clock.tick(time));
