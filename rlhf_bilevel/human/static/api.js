/**
 * The label server's answers (human/server.py), and whether it answers at all.
 *
 * @typedef {{query: string, left: string, right: string}} Pair a query and the ids of its clips
 * @typedef {"left" | "slightly_left" | "equal" | "both_bad" | "cant_tell" | "slightly_right" | "right" | "skip"} Choice
 * @typedef {{query: string, choice: Choice, key: string, shown_at: number, answered_at: number, note: string}} Answer times in seconds since 1970
 * @typedef {{key: string, query_id: string, choice: Choice, left: string, right: string, note: string, answered_at: number, can_change: boolean}} Past an answer of before
 *
 * @typedef {object} Training
 * @property {"on" | "waiting" | "silent" | "ended" | "away"} state silent: it reports nothing, and nobody knows why
 * @property {number} [step] this and what follows is missing before training has begun
 * @property {number} [steps]
 * @property {number} [labels] that it has used
 * @property {number} [wanted] labels in all; 0 where that is not known
 * @property {number} [again] labels given after the checkpoint that it resumed from: it uses them again
 * @property {number | null} [next_pairs] seconds until it asks again; null where that is not known
 * @property {number} [policies] among which people choose; 0 where a run is trained
 * @property {string} [doing] what it does just now, a sentence
 * @property {number | null} [fresh_accuracy] share of the last labels that it predicted; null before it can
 * @property {number} [fresh_labels] how many these are
 * @property {string} [command] what the owner types next, to go on or to watch; others do not get it
 *
 * @typedef {object} Status
 * @property {number} mine answers of this labeller
 * @property {number} total answers of all
 * @property {number} asked pairs so far
 * @property {number} open pairs that still need an answer; each of the next three is a part of them
 * @property {number} skipped by this labeller
 * @property {number} judged by this labeller, and waiting for another person
 * @property {number} taken by somebody else, who looks at them
 * @property {number} people who label here
 * @property {number} needed answers until the reward is updated
 * @property {boolean} can_undo
 * @property {Training} training
 */

import { sleep } from "./dom.js";

const FINAL = [401, 404, 409, 410, 422]; // what the label server has decided: no second try changes it

/** What the label server has decided. Any other error passes by, as another program at its address does. */
export class Refused extends Error {
  /** @param {number} status @param {string} message */
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const labeller = String(document.body.dataset.labeller);

export const connection = {
  isThere: true,
  /** Set by the page. */
  changed: () => {},
  /** Set by the page: the session is over, or of another labeller or run. */
  signedOut: () => {},
};

/** @param {string} path @param {object} [sent] @returns {Promise<unknown>} */
async function call(path, sent) {
  /** @type {Record<string, string>} */
  const headers = { "x-page-of": labeller };
  /** @type {RequestInit} */
  const options = { signal: AbortSignal.timeout(10000), credentials: "same-origin", headers };
  if (sent) {
    headers["content-type"] = "application/json";
    Object.assign(options, { method: "POST", body: JSON.stringify(sent) });
  }
  const answer = await fetch(path, options);
  if (answer.ok) return answer.json();
  const { error } = await answer.json().catch(() => ({}));
  if (!FINAL.includes(answer.status) || !error) throw new Error(error);
  throw new Refused(answer.status, error);
}

/** As ``call``, and the connection is known from it. @param {string} path @param {object} [sent] @returns {Promise<any>} */
async function tracked(path, sent) {
  try {
    const found = await call(path, sent);
    there(true);
    return found;
  } catch (error) {
    there(error instanceof Refused);
    if (error instanceof Refused && error.status === 401) connection.signedOut();
    throw error;
  }
}

/** @param {boolean} answers */
function there(answers) {
  if (answers === connection.isThere) return;
  connection.isThere = answers;
  connection.changed();
}

/** Tries until the server answers; Refused passes. @param {string} path @returns {Promise<any>} */
async function retried(path) {
  for (let pause = 0.5; ; pause = Math.min(2 * pause, 8)) {
    try {
      return await tracked(path);
    } catch (error) {
      if (error instanceof Refused) throw error;
      await sleep(pause);
    }
  }
}

/** @param {number} count @returns {Promise<Pair[]>} */
export const nextPairs = async (count) => (await tracked(`/api/next?count=${count}`)).pairs;

/** @returns {Promise<Status>} */
export const getStatus = () => tracked("/api/status");

/** @param {Answer} answer */
export const sendAnswer = (answer) => tracked("/api/answers", answer);

/** Takes back the answer that was sent with `key`, or else the last one. @param {string} [key] @returns {Promise<{query: string, note: string}>} */
export const takeBack = (key) => tracked("/api/undo", key ? { key } : {});

/** The last answers of this labeller, newest first, and whether training uses no more. @returns {Promise<{choices: Past[], over: boolean}>} */
export const getHistory = () => tracked("/api/history");

/** Makes the server show again what this labeller skipped and nobody else has answered. */
export const showSkippedAgain = () => tracked("/api/unskip", {});

/** @param {string} id @returns {Promise<import("./scene.js").Clip>} */
export const getClip = (id) => retried(`/api/clips/${encodeURIComponent(id)}`);

/** @param {string} id @returns {Promise<import("./scene.js").Scene>} */
export const getScene = (id) => retried(`/api/scenes/${encodeURIComponent(id)}`);
