/**
 * Keeps answers in this browser until the server has them, so that neither a reload nor a lost connection loses one. Each
 * has a key, so that sending it twice counts once.
 */

import { Refused, labeller, sendAnswer } from "./api.js";
import { once, sleep } from "./dom.js";

/** @typedef {import("./api.js").Answer} Answer */

const PREFIX = `answer:${labeller}:`;

/** @param {Answer} answer */
const nameOf = (answer) => PREFIX + answer.key;

export const outbox = {
  /** Set by the page: what waits has changed. */
  changed: () => {},
  /** Set by the page: an answer was refused, and is dropped. @type {(reason: string) => void} */
  refused: () => {},
  /** Set by the page: the server has an answer. @type {(answer: Answer) => void} */
  stored: () => {},
  /** Set by the page: nothing is being sent any more. */
  rested: () => {},

  /** @type {Set<string>} */
  _tried: new Set(), // keys
  _sending: false,

  /** Oldest first. Each lies under a name of its own, so that two windows do not write over each other's. @returns {Answer[]} */
  waiting() {
    const names = Object.keys(localStorage).filter((name) => name.startsWith(PREFIX));
    return names.map((name) => JSON.parse(localStorage[name])).sort((a, b) => a.answered_at - b.answered_at);
  },

  /** @param {Answer} answer */
  add(answer) {
    localStorage.setItem(nameOf(answer), JSON.stringify(answer));
    this.changed();
    this.send();
  },

  /** @param {Answer} answer */
  _drop(answer) {
    localStorage.removeItem(nameOf(answer));
    this.changed();
  },

  /** Drops the newest where it was never sent, and returns it. */
  takeUnsent() {
    const answer = this.waiting().pop();
    if (!answer || this._tried.has(answer.key)) return null;
    this._drop(answer);
    return answer;
  },

  async send() {
    if (this._sending) return;
    this._sending = true;
    let pause = 0.25;
    for (let answer; (answer = this.waiting()[0]); ) {
      this._tried.add(answer.key);
      try {
        await sendAnswer(answer);
        this._drop(answer);
        this.stored(answer);
        pause = 0.25;
      } catch (error) {
        if (error instanceof Refused && error.status === 401) break; // kept for the next session
        if (error instanceof Refused) {
          this._drop(answer);
          this.refused(error.message);
        } else {
          await Promise.race([sleep(pause * (1 + Math.random())), once(window, "online")]);
          pause = Math.min(2 * pause, 4);
        }
      }
    }
    this._sending = false;
    this.rested();
  },

  /** True once everything is acknowledged, false where that takes too long. */
  async emptied() {
    for (let tries = 0; tries < 60 && this.waiting().length; tries++) await sleep(0.05);
    return !this.waiting().length;
  },

  /** Tells of each query that is answered in another window of this browser. @param {(query: string) => void} told */
  watch(told) {
    addEventListener("storage", ({ key, newValue }) => {
      if (key?.startsWith(PREFIX) && newValue) told(JSON.parse(newValue).query);
    });
  },
};
