/**
 * Episodes of one agent, or of two side by side, with the rewards of each step. One clock moves all of it.
 *
 * What is shown is in the page itself (human/clips/page.py):
 *
 * @typedef {import("./scene.js").Clip} Clip
 * @typedef {import("./scene.js").Scene} Scene
 *
 * @typedef {object} Episode
 * @property {Clip} clip whose frame t is what things looked like before step t
 * @property {number[]} envRewards the environment's reward of each step
 * @property {number[] | null} learnedRewards the reward model's, if there is one
 * @property {boolean | null} success at any step; null if the environment never mentions it
 *
 * @typedef {object} Show what one agent did: that of a run, as it was at a step of its training
 * @property {string} run
 * @property {string} method
 * @property {number} step
 * @property {number} steps of the whole run
 * @property {Episode[]} episodes as many in all shows
 *
 * @typedef {{scenes: Record<string, Scene>, shows: Show[], columns: number[]}} Content columns: which shows are seen first
 */

import { element } from "./dom.js";
import { ClipViewer } from "./viewer.js";

const HOLD = 0.4; // seconds for which the last frame stays before the episode begins again
const [WIDTH, HEIGHT, MARGIN] = [1000, 100, 6]; // of a curve's own units, which the page stretches

/** @type {Content} */
const { scenes, shows, columns: first } = JSON.parse(element("content", HTMLScriptElement).text);

/**
 * The part of a column that the template puts there.
 *
 * @template {Element} T
 * @param {Element} within @param {string} selector @param {new () => T} type
 */
function part(within, selector, type) {
  const found = within.querySelector(selector);
  if (!(found instanceof type)) throw new Error(`the page has no ${selector}`);
  return found;
}

/** Short enough to be read while it changes. @param {number} value */
const short = (value) => (value && Math.abs(value) < 0.001 ? value.toExponential(1) : String(Number(value.toPrecision(4))));

/** @param {number} value */
const whole = (value) => value.toLocaleString("en");

/** @param {number[]} values */
const sum = (values) => values.reduce((total, value) => total + value, 0);

/** The least and the most of all values, with room around them if they are equal. @param {number[][]} curves @returns {[number, number]} */
function range(curves) {
  let [least, most] = [Infinity, -Infinity];
  for (const curve of curves) for (const value of curve) [least, most] = [Math.min(least, value), Math.max(most, value)];
  return least < most ? [least, most] : [least - 1, most + 1];
}

/** The reward of each step, and a cursor at the current one. */
class Curve {
  /** @param {HTMLElement} place */
  constructor(place) {
    this.place = place;
    this.plot = part(place, "svg", SVGElement);
    this._line = part(place, ".line", SVGElement);
    this._zero = part(place, ".zero", SVGElement);
    this._cursor = part(place, ".cursor", SVGElement);
    this._now = part(place, ".now", HTMLElement);
    this._sum = part(place, ".sum", HTMLElement);
    /** @type {number[]} */
    this._values = [];
    this._fps = this._seconds = this._most = 1;
    this._least = 0;
  }

  /** @param {number[]} values @param {[number, number]} range of its height @param {number} fps @param {number} seconds of its width */
  load(values, [least, most], fps, seconds) {
    [this._values, this._least, this._most, this._fps, this._seconds] = [values, least, most, fps, seconds];
    part(this.place, ".least", HTMLElement).textContent = short(least);
    part(this.place, ".most", HTMLElement).textContent = short(most);
    this._zero.setAttribute("d", least < 0 && most > 0 ? `M0 ${this._y(0)}H${WIDTH}` : "");
    this._line.setAttribute("d", `M${values.map((value, step) => `${this._x(step / fps)} ${this._y(value)}`).join("L")}`);
    this._sum.textContent = `sum ${short(sum(values))} in ${whole(values.length)} steps`;
  }

  /** @param {number} seconds */
  show(seconds) {
    const last = this._values.length - 1;
    const step = Math.min(last, Math.floor(seconds * this._fps + 1e-6));
    this._cursor.setAttribute("d", `M${this._x(Math.min(seconds, last / this._fps))} 0V${HEIGHT}`);
    this._now.textContent = short(this._values[step]);
  }

  /** @param {number} seconds */
  _x(seconds) {
    return Number((WIDTH * seconds / this._seconds).toFixed(2));
  }

  /** @param {number} value */
  _y(value) {
    return Number((HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (value - this._least) / (this._most - this._least)).toFixed(2));
  }
}

/** Where one agent is seen; the reader chooses which. */
class Column {
  /** @param {HTMLElement} place @param {number} number of the show */
  constructor(place, number) {
    this._place = place;
    this._missing = part(place, ".missing", HTMLElement);
    this.viewer = new ClipViewer(part(place, ".view", HTMLElement), async (id) => scenes[id]);
    this.trueReward = new Curve(part(place, "[data-of=true]", HTMLElement));
    this.learnedReward = new Curve(part(place, "[data-of=learned]", HTMLElement));
    this.choice = part(place, ".moment", HTMLSelectElement);
    part(place, ".labelled", HTMLElement).hidden = shows.length === 1;
    for (const run of new Set(shows.map((show) => show.run))) {
      const group = document.createElement("optgroup");
      group.label = run;
      shows.forEach((show, index) => show.run === run && group.append(new Option(`step ${whole(show.step)}`, String(index), false, index === number)));
      this.choice.append(group);
    }
  }

  get seen() {
    return shows[Number(this.choice.value)];
  }

  get curves() {
    return [this.trueReward, this.learnedReward];
  }

  /** From the first step to the last. @param {number} number of the episode */
  seconds(number) {
    const { clip, envRewards } = this.seen.episodes[number];
    return (envRewards.length - 1) / clip.fps;
  }

  /** @param {number} number of the episode @param {number} seconds of the clock */
  async load(number, seconds) {
    const { run, method, step, steps, episodes } = this.seen, { clip, envRewards, learnedRewards, success } = episodes[number];
    part(this._place, ".run", HTMLElement).textContent = run;
    const outcome = success === null ? "" : success ? " · success" : " · no success";
    part(this._place, ".about", HTMLElement).textContent = `${method}, step ${whole(step)} of ${whole(steps)}${outcome}`;
    part(this._place, ".clip", HTMLElement).dataset.kind = clip.kind;
    this.trueReward.load(envRewards, trueRange, clip.fps, seconds);
    this.learnedReward.place.hidden = !learnedRewards;
    this._missing.hidden = Boolean(learnedRewards);
    const learned = episodes.flatMap((episode) => (episode.learnedRewards ? [episode.learnedRewards] : [])); // every model has its own scale
    if (learnedRewards) this.learnedReward.load(learnedRewards, range(learned), clip.fps, seconds);
    await this.viewer.load(clip);
  }

  /** @param {number} seconds */
  show(seconds) {
    this.viewer.show((seconds * this.viewer.fps) / Math.max(this.viewer.frames - 1, 1));
    for (const curve of this.curves) if (!curve.place.hidden) curve.show(seconds);
  }
}

const play = element("play", HTMLButtonElement);
const scrubber = element("scrubber", HTMLInputElement);
const position = element("position", HTMLElement);
const episode = element("episode", HTMLSelectElement);
const speed = element("speed", HTMLSelectElement);

const trueRange = range(shows.flatMap(({ episodes }) => episodes.map(({ envRewards }) => envRewards)));
const places = /** @type {NodeListOf<HTMLElement>} */ (document.querySelectorAll(".column"));
const columns = first.map((number, place) => new Column(places[place], number));
for (const { viewer } of columns) viewer.camera = columns[0].viewer.camera; // all are seen from the same side

const clock = {
  playing: !matchMedia("(prefers-reduced-motion: reduce)").matches,
  at: 0, // seconds from the first step, up to ``seconds`` and HOLD
  seconds: 1, // of the longest episode
  step: 1, // seconds of a step, the shortest
  held: false, // while the scrubber is being dragged, or something is being loaded
  last: 0, // milliseconds
  loads: 0,

  /** @param {boolean} playing */
  play(playing) {
    this.playing = playing;
    play.textContent = playing ? "Pause" : "Play";
  },

  /** @param {number} seconds */
  seek(seconds) {
    this.at = seconds;
    const shown = Math.min(seconds, this.seconds);
    for (const column of columns) column.show(shown);
    scrubber.value = String(Math.round(shown / this.step));
    const words = `${shown.toFixed(1)} of ${this.seconds.toFixed(1)} s`;
    if (position.textContent === words) return;
    position.textContent = words;
    scrubber.setAttribute("aria-valuetext", words);
  },

  /** Shows what is chosen, from its first step on. */
  async load() {
    const load = ++this.loads, number = Number(episode.value);
    this.held = true;
    this.seconds = Math.max(...columns.map((column) => column.seconds(number)), 0.001);
    this.step = 1 / Math.max(...columns.map(({ seen }) => seen.episodes[number].clip.fps));
    scrubber.max = String(Math.round(this.seconds / this.step));
    await Promise.all(columns.map((column) => column.load(number, this.seconds)));
    if (load !== this.loads) return; // something else has been chosen meanwhile
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
for (const choice of [episode, ...columns.map((column) => column.choice)]) choice.addEventListener("change", () => clock.load());
play.addEventListener("click", () => clock.play(!clock.playing));
element("restart", HTMLButtonElement).addEventListener("click", () => {
  clock.seek(0);
  clock.play(true);
});
scrubber.addEventListener("input", () => clock.seek(Number(scrubber.value) * clock.step));
scrubber.addEventListener("pointerdown", () => (clock.held = true));
for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => (clock.held = false));
for (const { plot } of columns.flatMap(({ curves }) => curves)) {
  plot.addEventListener("click", (event) => {
    const { left, width } = plot.getBoundingClientRect();
    clock.seek(clock.seconds * (/** @type {MouseEvent} */ (event).clientX - left) / width);
  });
}
for (const { viewer } of columns) { // what one is turned to, all are
  for (const turn of ["pointermove", "wheel", "dblclick"]) viewer.canvas.addEventListener(turn, () => clock.playing || clock.seek(clock.at));
}
for (const hint of document.querySelectorAll(".of-scenes")) {
  if (hint instanceof HTMLElement) hint.hidden = shows.every(({ episodes }) => episodes.every(({ clip }) => clip.kind === "frames"));
}
clock.play(clock.playing);
await clock.load();
requestAnimationFrame((time) => clock.tick(time));
