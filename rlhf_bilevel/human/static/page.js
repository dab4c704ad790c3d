/** The page: one pair in front, the next one drawn behind it. An answer moves on at once, and the outbox sends it. */

import { Refused, connection, getStatus, labeller, getHistory, nextPairs, showSkippedAgain, takeBack } from "./api.js";
import { clipOf, keepOnly } from "./clips.js";
import { element, once, sleep } from "./dom.js";
import { listen } from "./keys.js";
import { outbox } from "./outbox.js";
import { player } from "./player.js";
import { clearStills, still } from "./stills.js";
import { NO_CONNECTION, NO_SESSION, notSent, number, predicted, rest, sentence, used } from "./wording.js";

/**
 * @typedef {import("./api.js").Pair} Pair
 * @typedef {import("./api.js").Choice} Choice
 * @typedef {import("./api.js").Status} Status
 * @typedef {import("./api.js").Training} Training
 */

const AHEAD = 3; // pairs that are held: the one in front, the one behind, and one whose clips are loaded
const HISTORY = 50; // answered pairs that undo can show at once
const LOOK = 300; // milliseconds from when a pair is painted: the second of two quick presses was not meant for it

const { body } = document;
const title = document.title;
const now = () => Date.now() / 1000;
const byId = (/** @type {string} */ id) => element(id, HTMLElement);
const help = element("help", HTMLDialogElement), historyDialog = element("history", HTMLDialogElement);
const noteDialog = element("note-dialog", HTMLDialogElement), noteText = element("note", HTMLTextAreaElement);
const buttons = /** @type {HTMLElement[]} */ ([...document.querySelectorAll("[data-choice]")]);

/** @type {Pair[]} */
const pairs = []; // to be judged, in order; the first is in front, or comes there as soon as it is drawn
/** @type {{pair: Pair, choice: Choice, at: number}[]} */
const answered = []; // newest last; at: milliseconds of this page
/** @type {Map<string, string>} */
const notes = new Map(); // by query
/** @type {Status | null} */
let status = null;
let changes = 0; // of what the status counts, made here: a status that was asked for before one is out of date
let heard = ""; // the last state of training that was known
let shownAt = 0; // seconds since 1970
let undoing = false;
/** @type {{query: string, choice: Choice} | null} */
let kept = null; // what the pair that came back from the history had been given
let noted = "", noteChanged = false; // the query whose note is being written
let turn = 0; // of those who wait for a stage only the latest may change what is shown
/** @type {HTMLElement | null} */
let hand = null; // the button that lost the focus when there was nothing to judge

// ---------------------------------------------------------------------------------------------------------- pairs

/** @param {Pair} a @param {Pair} b */
const same = (a, b) => a.query === b.query && a.left === b.left;

let asking = false, askAgain = false;

/** Asks for pairs, so that enough are held; asked for meanwhile, it asks once more. */
async function refill() {
  askAgain = asking;
  if (asking) return;
  asking = true;
  do {
    askAgain = false;
    try {
      const waiting = outbox.waiting(), began = performance.now();
      const assigned = await nextPairs(AHEAD + Math.min(waiting.length, 12)); // what is on its way is assigned again
      const held = [...pairs, ...answered.filter((past) => past.at >= began).map((past) => past.pair)];
      const sent = new Set([...waiting, ...outbox.waiting()].map((answer) => answer.query));
      pairs.push(...assigned.filter((pair) => !sent.has(pair.query) && !held.some((other) => same(other, pair))));
      for (const pair of pairs.slice(0, AHEAD)) Promise.all([clipOf(pair.left), clipOf(pair.right)]).catch(() => {});
    } catch {} // the connection is known to be gone, or the session
  } while (askAgain);
  asking = false;
  if (!player.isShown || pairs[0] !== player.front.pair) advance();
  else ahead();
}

/** Draws the next pair behind the one in front. */
function ahead() {
  if (player.isShown && pairs[0] === player.front.pair && pairs[1]) player.back.prepare(pairs[1]);
}

/** Brings the first pair to the front: at once where it is drawn already. Until then the one before stays. @returns {Promise<void>} */
async function advance() {
  const mine = ++turn;
  const [pair] = pairs;
  if (!pair && !asking) return tellRest();
  const slow = setTimeout(() => mine === turn && !player.isShown && pause("loading", "Loading the next pair …", ""), 300);
  if (!pair) return; // refill comes back here
  player.back.prepare(pair);
  try {
    await player.back.drawn;
  } catch (error) {
    player.back.pair = null;
    if (mine !== turn) return;
    pairs.shift();
    notice(`A pair could not be shown: ${error instanceof Error ? error.message : error}. It is left for later.`, true);
    return advance();
  } finally {
    clearTimeout(slow);
  }
  if (mine === turn) show(pair);
}

/** @param {Pair} pair which is drawn behind */
function show(pair) {
  const waited = ["empty", "away"].includes(String(body.dataset.state));
  player.swap();
  shownAt = now();
  Object.assign(body.dataset, { state: "pair", ...pair });
  delete body.dataset.answerable;
  requestAnimationFrame(() => setTimeout(() => {
    if (player.isShown && player.front.pair === pair) body.dataset.answerable = "";
  }, LOOK));
  if (document.activeElement === body) hand?.focus(); // which had it before there was nothing to judge
  hand = null;
  enable(true);
  if (waited) byId("said").textContent = "A new pair.";
  document.title = (waited && document.hidden ? "● " : "") + title;
  noteIsThere();
  offerToKeep();
  requestAnimationFrame(() => setTimeout(ahead)); // this pair is painted before the next one is drawn
  const near = [...pairs, ...answered.slice(-3).map((past) => past.pair)];
  keepOnly(new Set(near.flatMap(({ left, right }) => [left, right])));
}

/** The first pair is not to be judged any more. */
function hide() {
  player.isShown = false;
  delete body.dataset.answerable;
  enable(false);
  offerToKeep();
}

/** @param {Choice} choice */
function answer(choice) {
  if ("answerable" in body.dataset) give(choice);
}

/** @param {Choice} choice */
function give(choice) {
  if (!player.isShown || undoing) return;
  if (isSlight()) choice = SLIGHT[choice] ?? choice;
  slight(false);
  const pair = /** @type {Pair} */ (pairs.shift());
  const key = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  answered.push({ pair, choice, at: performance.now() });
  answered.splice(0, answered.length - HISTORY);
  kept = null;
  hide();
  changes++;
  if (status) status.can_undo = true;
  if (choice !== "skip") count(1);
  notice(`${SAID[choice]}.`);
  outbox.add({ query: pair.query, choice, key, shown_at: shownAt, answered_at: now(), note: notes.get(pair.query) ?? "" });
  if (!connection.isThere) notice(`${SAID[choice]}. ${notSent(outbox.waiting().length)}`, true);
  refill();
  advance();
}

const upright = matchMedia("(max-width: 37.49rem) and (max-aspect-ratio: 5/4)"); // as in page.css
const SAID = {
  get left() { return upright.matches ? "Upper is better" : "Left is better"; },
  get right() { return upright.matches ? "Lower is better" : "Right is better"; },
  get slightly_left() { return upright.matches ? "Upper is slightly better" : "Left is slightly better"; },
  get slightly_right() { return upright.matches ? "Lower is slightly better" : "Right is slightly better"; },
  equal: "Equally good",
  both_bad: "Both bad",
  cant_tell: "Can’t tell",
  skip: "Skipped",
};

const ACROSS = { left: "Left clip", right: "Right clip" }, UPRIGHT = { left: "Upper clip", right: "Lower clip" };

/** @type {Partial<Record<Choice, Choice>>} */
const SLIGHT = { left: "slightly_left", right: "slightly_right" };
const isSlight = () => byId("slightly").getAttribute("aria-pressed") === "true";
/** Whether the next side that is chosen is only slightly better. @param {boolean} pressed */
const slight = (pressed) => {
  byId("slightly").setAttribute("aria-pressed", String(pressed));
  byId("choices").classList.toggle("slight", pressed);
};

const NO_UNDO = "There is no answer to take back: training has used it, or there is none.";
const canUndo = () => outbox.waiting().length > 0 || (status?.can_undo ?? true); // the server knows, before its status does

/** Takes an answer back: one of the history, or else the last, which may not have been sent yet. @param {import("./api.js").Past} [changed] */
async function undo(changed) {
  if (undoing || body.dataset.state === "gone") return;
  if (!changed && !canUndo()) return notice(NO_UNDO, true);
  undoing = true;
  try {
    const unsent = changed ? null : outbox.takeUnsent();
    if (!unsent && !(await outbox.emptied())) throw new Error("the last answer may be on its way");
    await bringBack(unsent ?? (await takeBack(changed?.key)), changed?.choice);
  } catch (error) {
    if (body.dataset.state === "gone") return; // which leave() has told
    if (error instanceof Refused && status && !changed) status.can_undo = false;
    notice(error instanceof Refused ? NO_UNDO : "No connection: your answer cannot be taken back now.", true);
  } finally {
    undoing = false;
    ready();
    pollNow();
  }
}

/** Shows a pair again whose answer is taken back, and where that is known, offers to give it again. @param {{query: string, note: string}} undone @param {Choice} [before] */
async function bringBack({ query, note }, before) {
  if (note) notes.set(query, note);
  const place = answered.findLastIndex((past) => past.pair.query === query);
  const [past] = place < 0 ? [] : answered.splice(place, 1);
  changes++;
  if (past?.choice !== "skip") count(-1);
  if (status) status.can_undo = answered.length > 0; // until the server says so
  notice(before ? "Judge this pair again, or keep your answer." : "Your answer is taken back: judge this pair again.");
  hide();
  kept = before ? { query, choice: before } : null;
  for (let i; (i = pairs.findIndex((pair) => pair.query === query)) >= 0; ) pairs.splice(i, 1); // a repetition of it
  if (past) {
    pairs.unshift(past.pair);
    return advance();
  }
  pairs.length = 0; // all are asked for anew, and it is the first of them
  return refill();
}

/** Lists this labeller's last answers, with a button for each that may still be changed. */
async function showHistory() {
  if (body.dataset.state === "gone" || historyDialog.open) return;
  const list = byId("history-list"), text = byId("history-text");
  list.replaceChildren();
  text.textContent = "Loading …";
  historyDialog.showModal();
  try {
    await outbox.emptied();
    const { choices, over } = await getHistory();
    clearStills();
    text.textContent = !choices.length ? "There is no answer yet."
      : over ? "Training uses no more answers: they cannot be changed any more."
        : "You may change an answer until training has used it: the pair comes back to you.";
    list.replaceChildren(...choices.map((past) => pastItem(past, over)));
  } catch {
    text.textContent = "No connection: your answers cannot be listed now.";
  }
}

/** @param {import("./api.js").Past} past @param {boolean} over whether training uses no more answers */
function pastItem(past, over) {
  const [item, pictures, text] = ["li", "div", "div"].map((name) => document.createElement(name));
  const [words, when, note] = ["p", "p", "p"].map((name) => document.createElement(name));
  const time = new Date(1000 * past.answered_at).toLocaleString("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
  words.textContent = SAID[past.choice];
  when.textContent = past.can_change || over ? time : `${time}, used by training`;
  when.className = "when";
  note.textContent = past.note && `Note: ${past.note}`;
  for (const side of /** @type {const} */ (["left", "right"])) {
    const picture = still(past[side], upright.matches ? UPRIGHT[side] : ACROSS[side]);
    picture.classList.toggle("chosen", past.choice.endsWith(side));
    pictures.append(picture);
  }
  pictures.className = "stills";
  text.append(words, when, note);
  item.append(pictures, text);
  if (!past.can_change) return item;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Change";
  button.setAttribute("aria-label", `Change: ${words.textContent}, ${time}`);
  button.addEventListener("click", () => {
    historyDialog.close();
    undo(past);
  });
  item.append(button);
  return item;
}

/** Whether the pair in front has a note is seen on the button. */
function noteIsThere() {
  byId("note-button").classList.toggle("written", notes.has(pairs[0]?.query));
}

/** Where the pair in front came back from the history, a button gives it the same answer again. */
function offerToKeep() {
  const button = byId("keep"), offered = player.isShown && kept?.query === pairs[0]?.query ? kept : null;
  button.hidden = !offered;
  if (offered) button.textContent = `Keep: ${SAID[offered.choice].toLowerCase()}`;
}

function writeNote() {
  if (!player.isShown) return;
  noted = pairs[0].query;
  noteText.value = notes.get(noted) ?? "";
  noteChanged = false;
  noteDialog.showModal();
}

/** At each letter: an answer may come before the browser says that the dialog is closed. */
function keepNote() {
  const text = noteText.value.trim();
  if (text) notes.set(noted, text);
  else notes.delete(noted);
  noteIsThere();
  noteChanged = true;
}

function tellNote() {
  if (!noteChanged || pairs[0]?.query !== noted) return;
  notice(notes.has(noted) ? "Your note will be sent with your answer to this pair." : "The note on this pair is deleted.");
}

async function unskip() {
  try {
    await showSkippedAgain();
  } catch (error) {
    if (!(error instanceof Refused)) notice("No connection: the skipped pairs cannot be shown now.", true);
  }
  pollNow();
}

/** What was answered in another window is not asked here again. @param {string} query */
function answeredElsewhere(query) {
  const place = pairs.findIndex((pair) => pair.query === query);
  if (place < 0) return;
  pairs.splice(place, 1);
  if (place > 0 || !player.isShown) return;
  hide();
  notice("That pair was answered in another window.");
  refill();
  advance();
}

// ---------------------------------------------------------------------------------------------------------- what the page says

/** @param {string} text */
function notice(text, trouble = false) {
  byId("notice").textContent = byId("said").textContent = text;
  byId("notice").classList.toggle("trouble", trouble);
}

/** In place of a pair: a heading and a sentence. @param {string} state @param {string} heading @param {string} text */
function pause(state, heading, text) {
  const focused = document.activeElement;
  body.dataset.state = state;
  if (focused instanceof HTMLElement && focused.closest(".transport, .choices, [data-choice]")) hand = focused;
  for (const name of ["query", "left", "right"]) delete body.dataset[name];
  hide();
  if (byId("pause-heading").textContent !== heading) byId("pause-heading").textContent = byId("said").textContent = heading;
  byId("pause-text").textContent = text;
  byId("unskip").hidden = true;
}

function tellRest() {
  if (body.dataset.state === "gone") return;
  const { state, heading, text } = rest(status, connection.isThere, outbox.waiting().length);
  pause(state, heading, text);
  if (state !== "empty" || heading === "All done" || !status) return;
  byId("unskip").hidden = !status.skipped;
  byId("unskip").textContent = status.skipped === 1 ? "Show the skipped pair again" : "Show the skipped pairs again";
}

/** Nothing is lost, but only a reload or a new link helps. */
function leave() {
  const unsent = outbox.waiting().length ? " Answers that are not sent yet are kept in this browser, and sent once you are back." : "";
  tellTraining("unknown", [NO_SESSION]);
  pause("gone", "You are signed out here", `Your session has ended, or somebody else’s link was opened in this browser. Open the link that rlhf-bilevel label prints for you, then reload this page.${unsent}`);
}

/** Whether there is something to undo is seen on its button. */
function ready() {
  byId("undo").setAttribute("aria-disabled", String(!canUndo()));
}

/** Not `disabled`: that would take the focus away between two pairs. @param {boolean} there */
function enable(there) {
  for (const button of buttons) button.setAttribute("aria-disabled", String(!there));
}

/** @param {Status} status */
function tell(status) {
  ready();
  const { mine, total, training } = status, { wanted = 0, labels = 0 } = training, bar = element("bar", HTMLProgressElement);
  const unsent = connection.isThere ? 0 : outbox.waiting().filter(({ choice }) => choice !== "skip").length;
  byId("mine").textContent = number(Math.max(mine - unsent, 0));
  byId("total").textContent = number(Math.max(total - unsent, 0));
  byId("used").textContent = used(training);
  byId("predicted").textContent = predicted(training);
  bar.hidden = !wanted;
  bar.max = (training.policies && training.state === "ended" ? labels : wanted) || 1; // a selection may need fewer
  bar.value = labels;
  if (connection.isThere) tellTraining(training.state, sentence(status));
  else tellAway();
}

/** In place of what training does. */
function tellAway() {
  tellTraining("unknown", [NO_CONNECTION, "", ` ${notSent(outbox.waiting().length)}`]);
}

/** What training does, as far as that is known. @param {Training["state"] | "unknown"} state @param {string[]} parts */
function tellTraining(state, parts) {
  ["state", "detail", "outlook"].forEach((name, part) => (byId(name).textContent = parts[part] ?? ""));
  byId("training").dataset.state = state;
  if (state === "unknown" || state === "silent" || state === heard) return;
  if (heard) byId("said").textContent = parts.join("");
  heard = state;
}

/** One answer more or less, before the server says so. @param {number} difference */
function count(difference) {
  if (!status) return;
  status.mine = Math.max(status.mine + difference, 0);
  status.total = Math.max(status.total + difference, 0);
  tell(status);
}

let wake = () => {}, pollAgain = false;

async function poll() {
  for (;;) {
    pollAgain = false;
    try {
      const unsent = outbox.waiting().length, before = changes;
      const latest = await getStatus();
      if (!unsent && before === changes) status = latest; // else it may be of before the last answers
      else if (status) status.training = latest.training;
      if (status) tell(status);
      outbox.send();
      if (body.dataset.state === "gone") body.dataset.state = "loading"; // a link was opened in another window
      if (!pairs.length || !player.isShown) await refill();
    } catch {} // the connection is known to be gone, or the session
    const woken = new Promise((resolve) => (wake = () => resolve(null)));
    if (!pollAgain) await Promise.race([sleep(document.hidden ? 15 : 2), once(document, "visibilitychange"), woken]);
  }
}

/** Cuts the pause short. */
function pollNow() {
  pollAgain = true;
  wake();
}

// ---------------------------------------------------------------------------------------------------------- hands

/** By key: the button shows it. @param {Choice} choice */
function choose(choice) {
  if (!("answerable" in body.dataset)) return;
  const button = buttons.find((each) => each.dataset.choice === choice.replace("slightly_", ""));
  button?.classList.add("pressed");
  setTimeout(() => button?.classList.remove("pressed"), 150);
  answer(choice);
}

/** At the first visit, and where the guidelines are others than before, they are shown; without any, only where help is. */
function welcome() {
  const name = `visit:${labeller}`, rules = document.getElementById("guidelines")?.textContent ?? "";
  if (localStorage.getItem(name) === rules) return;
  if (rules) help.showModal();
  else notice("New here? Help says how to label.");
  localStorage.setItem(name, rules);
}

connection.changed = () => {
  if (connection.isThere) {
    notice("The connection is back.");
    return pollNow();
  }
  if (status) tell(status);
  else tellAway();
  if (!pairs.length) tellRest();
  notice(`No connection. ${notSent(outbox.waiting().length) || "Answers are kept here and sent when it is back."}`, true);
};
connection.signedOut = leave;
outbox.changed = () => {
  ready();
  if (connection.isThere) return;
  if (status) tell(status);
  else tellAway();
};
outbox.stored = ({ choice, note }) => note && notice(`${SAID[choice]}. Your note is kept: History shows it.`);
outbox.refused = (reason) => notice(`An answer was not taken: ${reason}.`, true);
outbox.rested = () => player.isShown || pollNow(); // the page says again why no pair is left
outbox.watch(answeredElsewhere);
for (const button of buttons) button.addEventListener("click", () => answer(/** @type {Choice} */ (button.dataset.choice)));
byId("undo").addEventListener("click", () => undo());
byId("slightly").addEventListener("click", () => slight(!isSlight()));
byId("keep").addEventListener("click", () => kept && give(kept.choice));
byId("note-button").addEventListener("click", writeNote);
byId("close-note").addEventListener("click", () => noteDialog.close());
noteText.addEventListener("input", keepNote);
noteDialog.addEventListener("close", tellNote);
byId("history-button").addEventListener("click", showHistory);
historyDialog.addEventListener("close", clearStills);
for (const button of document.querySelectorAll("button.close")) button.addEventListener("click", () => button.closest("dialog")?.close());
byId("unskip").addEventListener("click", unskip);
byId("help-button").addEventListener("click", () => help.showModal());
document.addEventListener("visibilitychange", () => (document.title = title));
listen({
  ArrowLeft: () => choose("left"),
  ArrowRight: () => choose("right"),
  "Shift+ArrowLeft": () => choose("slightly_left"),
  "Shift+ArrowRight": () => choose("slightly_right"),
  ArrowUp: () => choose("equal"),
  b: () => choose("both_bad"),
  ArrowDown: () => choose("cant_tell"),
  s: () => choose("skip"),
  u: () => undo(),
  h: showHistory,
  n: writeNote,
  r: () => player.restart(),
  " ": () => player.toggle(),
  "?": () => help.showModal(),
});
welcome();
player.start();
enable(false);
outbox.send();
await refill();
poll();
