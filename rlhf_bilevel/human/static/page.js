// The page: one pair in front, the next one drawn behind it; an answer moves on at once and is sent until it is acknowledged.
//
// Three things live here. The outbox keeps answers in this browser until the server has them, so that neither a reload nor a
// lost connection loses one; each has a key, so that sending it twice counts once. The stages show pairs. The clock moves both
// clips of a pair together.

const byId = (id) => document.getElementById(id);
const body = document.body;
const AHEAD = 3; // pairs that are held: the one in front, the one behind, and one whose clips are loaded
const HISTORY = 50; // answered pairs that undo can show at once
const SCENES = 32; // that are kept: a scene may be as new as an episode
const SLOW = 0.04; // seconds a frame, on average, above which clips are drawn with fewer pixels
const HOLD = 0.4; // seconds for which the last frame stays before clips begin again

const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
const now = () => Date.now() / 1000;

// ---------------------------------------------------------------------------------------------------------- the server

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const FINAL = [401, 404, 409, 410, 422]; // what the label server has decided: no second try changes it

/** JSON of the server. Refused for what it has decided; another Error for what passes by, as another program at its address does. */
async function call(path, sent) {
  const headers = { "x-page-of": body.dataset.labeller };
  const options = { signal: AbortSignal.timeout(10000), credentials: "same-origin", headers };
  if (sent) Object.assign(options, { method: "POST", headers: { ...headers, "content-type": "application/json" }, body: JSON.stringify(sent) });
  const answer = await fetch(path, options);
  if (answer.ok) return answer.json();
  const told = await answer.json().catch(() => ({}));
  if (!FINAL.includes(answer.status) || !told.error) throw new Error(told.error);
  if (answer.status === 401) leave();
  throw new Refused(answer.status, told.error);
}

/** Tries until the server answers; Refused passes. */
async function insist(path) {
  for (let pause = 0.5; ; pause = Math.min(2 * pause, 8)) {
    try {
      return await call(path);
    } catch (error) {
      if (error instanceof Refused) throw error;
      connection(false);
      await sleep(pause);
    }
  }
}

let connected = true;

function connection(there) {
  if (there !== connected) notice(there ? "The connection is back." : "No connection. Answers are kept here and sent when it is back.", !there);
  connected = there;
}

/** The session is over, or of another labeller or run: nothing is lost, but only a reload or a new link helps. */
function leave() {
  const unsent = outbox.waiting().length ? " Answers that are not sent yet are kept in this browser, and sent once you are back." : "";
  pause("gone", "You are signed out here", `Your session has ended, or somebody else’s link was opened in this browser. Open the link that rlhf-bilevel label prints for you, then reload this page.${unsent}`);
}

// ---------------------------------------------------------------------------------------------------------- the outbox

const outbox = {
  prefix: `answer:${body.dataset.labeller}:`,
  tried: new Set(),
  sending: false,

  /** A key of local storage for each answer, so that two windows do not write over each other's. Oldest first. */
  waiting() {
    const keys = Object.keys(localStorage).filter((name) => name.startsWith(this.prefix));
    return keys.map((name) => JSON.parse(localStorage.getItem(name))).sort((a, b) => a.answered_at - b.answered_at);
  },

  add(answer) {
    localStorage.setItem(this.prefix + answer.key, JSON.stringify(answer));
    ready();
    this.send();
  },

  drop(answer) {
    localStorage.removeItem(this.prefix + answer.key);
    ready();
  },

  async send() {
    if (this.sending) return;
    this.sending = true;
    let pause = 0.25;
    for (let answer; (answer = this.waiting()[0]); ) {
      this.tried.add(answer.key);
      try {
        await call("/api/answers", answer);
        this.drop(answer);
        connection(true);
        pause = 0.25;
      } catch (error) {
        if (error instanceof Refused && error.status === 401) break;
        if (error instanceof Refused) {
          this.drop(answer);
          notice(`An answer was not taken: ${error.message}.`, true);
        } else {
          connection(false);
          await Promise.race([sleep(pause * (1 + Math.random())), new Promise((again) => addEventListener("online", again, { once: true }))]);
          pause = Math.min(2 * pause, 4);
        }
      }
    }
    this.sending = false;
    if (!shown) poll.now(); // why nothing is left is told anew
  },

  /** True once everything is acknowledged, false where that takes too long. */
  async emptied() {
    for (let tries = 0; tries < 60 && this.waiting().length; tries++) await sleep(0.05);
    return !this.waiting().length;
  },
};

// ---------------------------------------------------------------------------------------------------------- clips

const scenes = new Map();
const clips = new Map();

/** The same promise for the same address; what failed is asked again. */
function once(kept, path) {
  if (!kept.has(path)) kept.set(path, insist(path).catch((error) => (kept.delete(path), Promise.reject(error))));
  return kept.get(path);
}

const sceneOf = (id) => once(scenes, `/api/scenes/${encodeURIComponent(id)}`);
const clipOf = (id) => once(clips, `/api/clips/${encodeURIComponent(id)}`);

class Stage {
  constructor(element) {
    this.element = element;
    this.viewers = [...element.querySelectorAll(".view")].map((view) => new ClipViewer(view, sceneOf));
    this.pair = null;
    this.drawn = Promise.resolve();
  }

  /** Loads a pair and draws its first frame; `drawn` tells when. */
  prepare(pair) {
    if (this.pair === pair) return;
    this.pair = pair;
    this.drawn = Promise.all([pair.left, pair.right].map(async (id, side) => this.viewers[side].load(await clipOf(id))));
    delete this.element.dataset.drawn;
    this.drawn.then(() => this.pair === pair && (this.element.dataset.drawn = pair.query), () => {}); // who waits for it is told
  }

  /** From the first frame to the last, of the longer clip. */
  get seconds() {
    return Math.max(...this.viewers.map((viewer) => (viewer.frames - 1) / viewer.fps), 0.001);
  }

  get step() {
    return 1 / Math.max(...this.viewers.map((viewer) => viewer.fps));
  }

  show(seconds) {
    for (const viewer of this.viewers) viewer.show((seconds * viewer.fps) / Math.max(viewer.frames - 1, 1));
  }
}

let front = new Stage(byId("stage-a"));
let back = new Stage(byId("stage-b"));
let detail = 1;

/** Where a machine draws slowly, as one without a graphics card does: clips that move tell more than sharp ones. */
function coarser() {
  clock.frame = 0;
  if (detail <= 0.5) return;
  detail -= 0.25;
  for (const viewer of [...front.viewers, ...back.viewers]) viewer.detail = detail;
}

// All clips are looked at from the same side: who turns one turns the other, and the pairs to come.
for (const { viewers, element } of [front, back]) {
  for (const viewer of viewers) viewer.view = front.viewers[0].view;
  for (const turn of ["pointermove", "wheel", "dblclick"]) element.addEventListener(turn, () => clock.playing || clock.draw());
}

// ---------------------------------------------------------------------------------------------------------- the clock

const scrubber = byId("scrubber");
const clock = {
  at: 0, // seconds from the clips' first frame, up to their length and HOLD
  playing: !matchMedia("(prefers-reduced-motion: reduce)").matches,
  held: false, // while the scrubber is being dragged
  last: 0,
  frame: 0, // seconds that one takes, a moving average

  tick(time) {
    const frame = Math.min((time - this.last) / 1000, 0.1), passed = frame * Number(byId("speed").value);
    this.last = time;
    this.frame += (frame - this.frame) / 32;
    if (this.frame > SLOW && !document.hidden) coarser();
    if (shown && this.playing && !this.held) {
      this.at += passed;
      if (this.at > front.seconds + HOLD * Number(byId("speed").value)) this.at = 0;
      this.draw();
    }
    requestAnimationFrame((next) => this.tick(next));
  },

  draw() {
    const seconds = Math.min(this.at, front.seconds);
    front.show(seconds);
    scrubber.value = seconds / front.step;
    const position = `${seconds.toFixed(1)} / ${front.seconds.toFixed(1)} s`;
    if (byId("position").value !== position) byId("position").value = position;
    scrubber.setAttribute("aria-valuetext", position);
  },

  /** From the first frame of the pair in front. */
  begin() {
    scrubber.max = Math.round(front.seconds / front.step);
    this.at = 0;
    this.draw();
  },

  play(playing) {
    this.playing = playing;
    byId("play-word").textContent = playing ? "Pause" : "Play";
  },

  seek(seconds) {
    this.at = seconds;
    if (shown) this.draw();
  },
};

// ---------------------------------------------------------------------------------------------------------- pairs

const pairs = []; // to be judged, in order; the first is in front, or comes there as soon as it is drawn
const answered = []; // newest last: {pair, key, choice, at}
let shown = false; // whether the first pair is in front
let shownAt = 0;
let hand = null; // the button that lost the focus when there was nothing to judge
let turn = 0; // of those who wait for a stage only the latest may change what is shown

const same = (a, b) => a.query === b.query && a.left === b.left;

/** Asks for pairs, so that enough are held; asked for meanwhile, it asks once more. */
async function refill() {
  refill.again = refill.asking;
  if (refill.asking) return;
  refill.asking = true;
  do {
    refill.again = false;
    try {
      const waiting = outbox.waiting(), began = performance.now();
      const count = AHEAD + Math.min(waiting.length, 12); // what is answered and on its way is offered again
      const offered = (await call(`/api/next?count=${count}`)).pairs;
      connection(true);
      const known = [...pairs, ...answered.filter((past) => past.at >= began).map((past) => past.pair)];
      const sent = new Set([...waiting, ...outbox.waiting()].map((answer) => answer.query));
      pairs.push(...offered.filter((pair) => !sent.has(pair.query) && !known.some((other) => same(other, pair))));
      for (const pair of pairs.slice(0, AHEAD)) Promise.all([clipOf(pair.left), clipOf(pair.right)]).catch(() => {});
    } catch (error) {
      if (!(error instanceof Refused)) connection(false);
    }
  } while (refill.again);
  refill.asking = false;
  if (!shown || pairs[0] !== front.pair) advance();
  else ahead();
}

/** Draws the next pair behind the one in front. */
function ahead() {
  if (shown && pairs[0] === front.pair && pairs[1]) back.prepare(pairs[1]);
}

/** Brings the first pair to the front: at once where it is drawn already. Until then the one before stays. */
async function advance() {
  const mine = ++turn;
  const pair = pairs[0];
  if (!pair && !refill.asking) return rest();
  const slow = setTimeout(() => mine === turn && !shown && pause("loading", "Loading the next pair …", ""), 300);
  if (!pair) return; // refill comes back here
  back.prepare(pair);
  try {
    await back.drawn;
  } catch (error) {
    back.pair = null;
    if (mine !== turn) return;
    pairs.shift();
    notice(`A pair could not be shown: ${error.message}. It is left for later.`, true);
    return advance();
  } finally {
    clearTimeout(slow);
  }
  if (mine === turn) swap();
}

function swap() {
  [front, back] = [back, front];
  const waited = ["empty", "away"].includes(body.dataset.state);
  shown = true;
  shownAt = now();
  body.dataset.state = "pair";
  body.dataset.query = front.pair.query;
  body.dataset.left = front.pair.left;
  body.dataset.right = front.pair.right;
  front.element.classList.add("front");
  front.element.inert = false;
  if (document.activeElement === body) hand?.focus(); // which had it before there was nothing to judge
  hand = null;
  back.element.classList.remove("front");
  back.element.inert = true;
  clock.begin();
  enable(true);
  if (waited) byId("said").textContent = "A new pair.";
  document.title = (waited && document.hidden ? "● " : "") + title;
  requestAnimationFrame(() => setTimeout(ahead)); // this pair is painted before the next one is drawn
  const needed = new Set(pairs.flatMap((pair) => [pair.left, pair.right]));
  for (const { pair } of answered.slice(-3)) needed.add(pair.left).add(pair.right);
  for (const path of clips.keys()) if (!needed.has(path.split("/").pop())) clips.delete(path); // flat memory
  for (const path of scenes.keys()) if (scenes.size > SCENES) scenes.delete(path); // the oldest
}

function answer(choice) {
  if (!shown || undo.busy) return;
  const pair = pairs.shift();
  const key = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  answered.push({ pair, key, choice, at: performance.now() });
  answered.splice(0, answered.length - HISTORY);
  shown = false;
  enable(false);
  if (status) status.can_undo = true;
  if (choice !== "skip") counted(1);
  notice(`${SAID[choice]}.`);
  outbox.add({ query: pair.query, choice, key, shown_at: shownAt, answered_at: now() });
  refill();
  advance();
}

const upright = matchMedia("(max-width: 37.49rem) and (max-aspect-ratio: 5/4)"); // as in page.css
const SAID = {
  get left() { return upright.matches ? "Upper is better" : "Left is better"; },
  get right() { return upright.matches ? "Lower is better" : "Right is better"; },
  equal: "Equally good",
  cant_tell: "Can’t tell",
  skip: "Skipped",
};

/** Takes the last answer back: here, where it was not sent yet, else on the server. */
async function undo() {
  if (undo.busy || body.dataset.state === "gone") return;
  if (!canUndo()) return notice(NO_UNDO, true);
  undo.busy = true;
  try {
    const unsent = outbox.waiting().pop();
    let query;
    if (unsent && !outbox.tried.has(unsent.key)) {
      outbox.drop(unsent);
      query = unsent.query;
    } else if (await outbox.emptied()) query = (await call("/api/undo", {})).query;
    else throw new Error();
    const place = answered.findLastIndex((past) => past.pair.query === query);
    const [past] = place < 0 ? [] : answered.splice(place, 1);
    if (!past || past.choice !== "skip") counted(-1);
    if (status) status.can_undo = answered.length > 0; // until the server says so
    notice("Your last answer is taken back.");
    if (past) {
      pairs.unshift(past.pair);
      shown = false;
      enable(false);
      await advance();
    } else await again();
  } catch (error) {
    if (body.dataset.state === "gone") return; // which leave() has told
    if (error instanceof Refused && status) status.can_undo = false;
    notice(error instanceof Refused ? NO_UNDO : "No connection: your answer cannot be taken back now.", true);
  } finally {
    undo.busy = false;
    ready();
    poll.now();
  }
}

const NO_UNDO = "There is no answer to take back: training has used it, or there is none.";
const canUndo = () => outbox.waiting().length > 0 || Boolean(status?.can_undo);

/** Whether there is something to undo is seen on its button. */
function ready() {
  byId("undo").setAttribute("aria-disabled", String(!canUndo()));
}

/** Offers again what this labeller skipped and nobody else has answered. */
async function unskip() {
  try {
    await call("/api/unskip", {});
  } catch (error) {
    if (!(error instanceof Refused)) notice("No connection: the skipped pairs cannot be shown now.", true);
  }
  poll.now();
}

/** What was answered in another window of this browser is not asked here again. */
addEventListener("storage", ({ key, newValue }) => {
  if (!key?.startsWith(outbox.prefix) || !newValue) return;
  const { query } = JSON.parse(newValue), place = pairs.findIndex((pair) => pair.query === query);
  if (place < 0) return;
  pairs.splice(place, 1);
  if (place > 0 || !shown) return;
  shown = false;
  enable(false);
  notice("That pair was answered in another window.");
  refill();
  advance();
});

/** Asks anew for all pairs: what was taken back is the first of them. */
async function again() {
  pairs.length = 0;
  shown = false;
  enable(false);
  await refill();
}

// ---------------------------------------------------------------------------------------------------------- what is told

const title = document.title;
let status = null;

function notice(text, trouble = false) {
  byId("notice").textContent = text;
  byId("notice").classList.toggle("trouble", trouble);
  byId("said").textContent = text;
}

/** In place of a pair: a heading and a sentence. */
function pause(state, heading, text) {
  const focused = document.activeElement;
  body.dataset.state = state;
  if (focused?.closest(".transport, .choices, [data-choice]")) hand = focused;
  for (const name of ["query", "left", "right"]) delete body.dataset[name];
  shown = false;
  enable(false);
  if (byId("pause-heading").textContent !== heading) byId("pause-heading").textContent = byId("said").textContent = heading;
  byId("pause-text").textContent = text;
  byId("unskip").hidden = true;
}

function rest() {
  if (body.dataset.state === "gone") return;
  if (!connected) return pause("away", "No connection", "The next pair comes up here by itself once it is back. Your answers are kept until then.");
  if (!status) return pause("loading", "Loading the first pair …", "");
  if (outbox.waiting().length) return pause("loading", "Sending your answer …", "");
  const { training, open, skipped, judged, taken } = status;
  if (training.state === "ended") return pause("empty", "All done", "This run has ended. Thank you.");
  if (hasAll(training)) return pause("empty", "All done", "Training has all the labels that it asked for. Thank you.");
  if (open > skipped + judged + taken) return pause("loading", "Loading the next pair …", "");
  const text = open ? left(status) : NOTHING[training.state === "away" && !training.steps ? "unheard" : training.state];
  pause("empty", open ? "No pair is left for you now" : "Nothing to label now", `${text} ${open || training.state !== "away" ? "The next pair comes up here by itself; you can leave this page open." : ""}`.trim());
  byId("unskip").hidden = !skipped;
  byId("unskip").textContent = skipped === 1 ? "Show the skipped pair again" : "Show the skipped pairs again";
}

/** Where every pair that was asked is answered. */
const NOTHING = {
  on: "All pairs that were asked are answered. Training goes on, and asks again later.",
  waiting: "All pairs that were asked are answered. Training goes on in a moment.",
  away: "All pairs that were asked are answered. Training is not running: the next pair comes up here by itself once it runs again.",
  unheard: "Training has not begun to ask. The first pair comes up here by itself once it does.",
};

const hasAll = (training) => Boolean(training.wanted) && training.labels >= training.wanted;
const number = new Intl.NumberFormat("en");
const some = (count, one, more = `${one}s`) => `${number.format(count)} ${count === 1 ? one : more}`;

/** Why none of the open pairs comes to this labeller. */
function left({ skipped, judged, taken }) {
  const why = [];
  if (taken) why.push(`Somebody else is looking at ${some(taken, "pair")}; what is not answered within ten minutes comes to you.`);
  if (judged) why.push(`${some(judged, "pair")} that you answered ${judged === 1 ? "waits" : "wait"} for another person’s answer, too.`);
  if (skipped) why.push(`You skipped ${some(skipped, "pair")}: another person can judge ${skipped === 1 ? "it" : "them"}, or you look again.`);
  return why.join(" ");
}

/** What training does: a sentence, what it does just now, for which a narrow screen has no room, and what comes next. */
function sentence({ training, needed, open }) {
  const step = training.steps ? `step ${number.format(training.step)} of ${number.format(training.steps)}` : "";
  if (training.state === "ended") return [`Training has ended${step && `, ${step}`}.`, "", open ? " More answers are kept, but it does not use them." : ""];
  if (training.state === "away") return [step ? "Training is not running. Answers are kept for it." : "Training has not begun yet.", "", ""];
  if (training.state === "waiting" && needed) return [`Training waits for ${some(needed, "more answer")} (${step}).`, "", ""];
  if (training.state === "waiting") return [`Training has the answers that it waited for, and goes on (${step}).`, "", ""];
  const update = hasAll(training) ? " It has all its labels." : needed ? ` ${some(needed, "more answer")} until the reward is updated.` : "";
  return [`Training goes on, ${step}`, `: ${training.doing.replace(/\.$/, "")}`, `.${update}`];
}

function tell() {
  ready();
  const { mine, total, training } = status;
  byId("mine").textContent = number.format(mine);
  byId("total").textContent = number.format(total);
  byId("used").textContent = training.wanted ? `${number.format(training.labels)} of ${some(training.wanted, "label")} used` : "";
  byId("bar").hidden = !training.wanted;
  byId("bar").max = training.wanted || 1;
  byId("bar").value = training.labels || 0;
  const told = sentence(status);
  ["state", "detail", "outlook"].forEach((name, part) => (byId(name).textContent = told[part]));
  const before = byId("training").dataset.state;
  byId("training").dataset.state = training.state;
  if (before !== training.state && before !== "unknown") byId("said").textContent = told.join("");
}

/** One answer more or less, before the server says so. */
function counted(difference) {
  if (!status) return;
  for (const name of ["mine", "total"]) status[name] = Math.max(status[name] + difference, 0);
  tell();
}

async function poll() {
  for (;;) {
    poll.asked = false;
    try {
      const told = await call("/api/status");
      connection(true);
      if (!outbox.waiting().length) { // else it is of before the answers that are on their way
        status = told;
        tell();
      }
      outbox.send();
      if (body.dataset.state === "gone") body.dataset.state = "loading"; // a link was opened in another window
      if (!pairs.length || !shown) await refill();
    } catch (error) {
      if (!(error instanceof Refused)) connection(false);
    }
    const seen = new Promise((back) => document.addEventListener("visibilitychange", back, { once: true }));
    const woken = new Promise((wake) => (poll.wake = wake));
    if (!poll.asked) await Promise.race([sleep(document.hidden ? 15 : 2), seen, woken]);
  }
}

/** Cuts the pause short. */
poll.now = () => {
  poll.asked = true;
  poll.wake?.();
};

// ---------------------------------------------------------------------------------------------------------- hands

const KEYS = { ArrowLeft: "left", ArrowRight: "right", ArrowUp: "equal", ArrowDown: "cant_tell", s: "skip" };
const choices = [...document.querySelectorAll("[data-choice]")];

/** Not `disabled`: that would take the focus away between two pairs. */
function enable(there) {
  for (const button of choices) button.setAttribute("aria-disabled", String(!there));
}

for (const button of choices) button.addEventListener("click", () => answer(button.dataset.choice));
byId("undo").addEventListener("click", undo);
byId("unskip").addEventListener("click", unskip);
byId("play").addEventListener("click", () => clock.play(!clock.playing));
byId("restart").addEventListener("click", restart);
byId("help-button").addEventListener("click", () => byId("help").showModal());
byId("close-help").addEventListener("click", () => byId("help").close());
scrubber.addEventListener("input", () => clock.seek(Number(scrubber.value) * front.step));
scrubber.addEventListener("pointerdown", () => (clock.held = true));
for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => (clock.held = false));

function restart() {
  clock.seek(0);
  clock.play(true);
}

// What was clicked or dragged gives the keys back: else Space would answer again, and arrows would move the scrubber.
addEventListener("click", (event) => event.detail > 0 && event.target.closest?.("main button, header button")?.blur());
scrubber.addEventListener("pointerup", () => scrubber.blur());
byId("speed").addEventListener("change", () => byId("speed").blur());

const singleKeys = byId("keys");
singleKeys.checked = localStorage.getItem("single-keys") !== "off";
function useKeys() {
  localStorage.setItem("single-keys", singleKeys.checked ? "on" : "off");
  body.classList.toggle("no-keys", !singleKeys.checked);
}
singleKeys.addEventListener("change", useKeys);
useKeys();

addEventListener("keydown", (event) => {
  if (!singleKeys.checked || event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  if (event.target.matches("input, select")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const button = event.target.closest("button, a");
  if (key === "Enter" || (key === " " && button)) return; // the button's own
  const act = key in KEYS ? () => choose(KEYS[key]) : { u: undo, r: restart, " ": () => clock.play(!clock.playing), "?": () => byId("help").showModal() }[key];
  if (!act) return;
  event.preventDefault();
  if (!event.repeat) act(); // a key that is held down is one answer
});

/** By key: the button shows it. */
function choose(choice) {
  const button = choices.find((one) => one.dataset.choice === choice);
  button.classList.add("pressed");
  setTimeout(() => button.classList.remove("pressed"), 150);
  answer(choice);
}

document.addEventListener("visibilitychange", () => (document.title = title));

// At the first visit, and where the guidelines are others than before, they are shown; without any, only where help is
const visit = { name: `visit:${body.dataset.labeller}`, rules: byId("guidelines")?.textContent ?? "" };
if (localStorage.getItem(visit.name) !== visit.rules) {
  if (visit.rules) byId("help").showModal();
  else notice("New here? Help says how to label.");
  localStorage.setItem(visit.name, visit.rules);
}

clock.play(clock.playing);
enable(false);
requestAnimationFrame((time) => clock.tick(time));
outbox.send();
await refill();
poll();
