/** What is said of training, and of why no pair is left: sentences from the server's status. */

/**
 * @typedef {import("./api.js").Status} Status
 * @typedef {import("./api.js").Training} Training
 * @typedef {{state: "loading" | "away" | "empty", heading: string, text: string}} Rest
 */

const numbers = new Intl.NumberFormat("en");

/** @param {number} [value] */
export const number = (value = 0) => numbers.format(value);

/** @param {number} count @param {string} one */
export const some = (count, one) => `${number(count)} ${one}${count === 1 ? "" : "s"}`;

/** @param {Training} training */
const hasAll = ({ labels = 0, wanted = 0 }) => wanted > 0 && labels >= wanted;

/**
 * What training does: a sentence, what it does just now, for which a narrow screen has no room, and what comes next.
 *
 * @param {Status} status
 */
export function sentence(status) {
  const { training, needed, open, asked } = status;
  const { state, steps, step, doing = "", again } = training;
  if (training.policies) return [ofSelection(training), "", ""];
  const at = steps ? `step ${number(step)} of ${number(steps)}` : "";
  switch (state) {
    case "ended":
      return [`Training has ended${at && `, ${at}`}.`, "", open ? " More answers are kept, but it does not use them." : ""];
    case "silent":
      return [`Training has not reported for some seconds (${at}). It is busy, or it was stopped.`, "", ""];
    case "away":
      return [at ? "Training is not running. Answers are kept for it." : "Training has not begun yet.", "", ""];
    case "waiting":
      if (needed) return [`Training waits for ${some(needed, "more answer")} (${at}).`, "", ""];
      return [`Training has the answers that it waited for, and goes on (${at}).`, "", ""];
    case "on": {
      const update = again ? " It repeats what came after its last saved state."
        : hasAll(training) ? " It has all its labels." : needed && asked && canBeAnswered(status) ? ` ${some(needed, "more answer")} until the reward is updated.` : "";
      return [`Training goes on, ${at}`, `: ${doing.replace(/\.$/, "")}`, `.${update}`];
    }
  }
}

/** What is said in place of training where people choose among the policies of a run. @param {Training} training */
function ofSelection({ state, policies = 0 }) {
  if (state === "ended") return `You chose among ${number(policies)} policies.`;
  const choice = `You choose among ${number(policies)} policies: which of these behaviours is better?`;
  return state === "away" ? `${choice} The selection is not running now. Answers are kept for it.` : choice;
}

/** Whether anybody could answer a pair that was asked, without going back to one that they skipped. @param {Status} status */
const canBeAnswered = ({ open, skipped, people }) => open > (people > 1 ? 0 : skipped);

/** In place of what training does. */
export const NO_CONNECTION = "No connection: the server of this page has stopped, or the network is gone.";
export const NO_SESSION = "What training does is shown to those who are signed in.";

/** What the server does not have yet; nothing where it has all. @param {number} unsent answers */
export const notSent = (unsent) => (unsent
  ? `${some(unsent, "answer")} not sent yet: keep this page open. ${unsent === 1 ? "It is" : "They are"} sent once the server is back.` : "");

/** How many labels training has used. @param {Training} training */
export function used({ labels = 0, wanted = 0, again = 0, policies = 0 }) {
  if (!wanted) return "";
  if (policies) return `${number(labels)} of at most ${some(wanted, "answer")} used`;
  const kept = again ? `; ${number(again)} more ${again === 1 ? "is" : "are"} kept, and used again later` : "";
  return `${number(labels)} of ${some(wanted, "label")} used${kept}`;
}

/** How many of the newest labels the reward predicted. @param {Training} training */
export function predicted({ fresh_accuracy = null, fresh_labels = 0 }) {
  if (fresh_accuracy == null) return "";
  return `The reward predicted ${number(Math.round(fresh_accuracy * fresh_labels))} of the last ${number(fresh_labels)} (ties left out)`;
}

/** @param {Training} training @param {string} unknown what is said where it is not known */
function when({ next_pairs: seconds }, unknown) {
  if (seconds == null) return unknown;
  if (seconds < 60) return "in less than a minute";
  const minutes = Math.round(seconds / 60);
  return `in about ${minutes < 90 ? some(minutes, "minute") : some(Math.round(minutes / 60), "hour")}`;
}

const BY_ITSELF = "The next pair comes up here by itself; you can leave this page open.";

/** Before the first question. @param {Training} training */
function beforeTheFirst(training) {
  const here = "It comes up here by itself";
  if (!training.steps) return `Training has not begun yet. ${here} once training asks.`;
  const again = training.command ? ` It runs again with: ${training.command}` : "";
  if (training.state === "away") return `Training is not running, and has not asked yet. ${here} once training runs again.${again}`;
  const time = when(training, "once it has enough of them");
  return `The agent collects its first episodes. The first pair comes ${time}. ${here}; you can leave this page open.`;
}

/** What comes, where no pair is left. @param {Status} status */
function whatComes({ training, needed }) {
  const { state, command } = training;
  switch (state) {
    case "on": return `Training goes on, and asks again ${when(training, "later")}. ${BY_ITSELF}`;
    case "waiting": return `${needed ? `Training waits for ${some(needed, "more answer")}.` : "Training goes on in a moment."} ${BY_ITSELF}`;
    case "silent": return `If training is only busy, it asks again later. ${BY_ITSELF}`;
    default: return `Training is not running: the next pair comes up here by itself once it runs again.${command ? ` It runs again with: ${command}` : ""}`;
  }
}

/**
 * Why there is no pair, and what comes.
 *
 * @param {Status | null} status @param {boolean} connected @param {number} unsent answers
 * @returns {Rest}
 */
export function rest(status, connected, unsent) {
  if (!connected) return { state: "away", heading: "No connection", text: `The next pair comes up here by itself once it is back. ${notSent(unsent)}`.trim() };
  if (!status) return { state: "loading", heading: "Loading the first pair …", text: "" };
  if (unsent) return { state: "loading", heading: "Sending your answer …", text: "" };
  const { training, asked, open, skipped, judged, taken } = status;
  const { command = "", policies } = training;
  if (training.state === "ended") {
    const thanks = policies ? "The agent now acts by the policy that was preferred. Thank you." : "This run has ended. Thank you.";
    return { state: "empty", heading: "All done", text: `${thanks}${command && ` To see the agent: ${command}`}` };
  }
  if (!policies && hasAll(training)) {
    const more = command && (training.state === "away" ? ` It goes on with: ${command}` : ` It goes on without new labels until its last step. To see the agent then: ${command}`);
    return { state: "empty", heading: "All done", text: `Training has all the labels that it asked for. Thank you.${more}` };
  }
  if (open > skipped + judged + taken) return { state: "loading", heading: "Loading the next pair …", text: "" };
  const comes = policies ? nextOfSelection(status) : whatComes(status);
  const waits = [forOthers(status), youSkipped(status)].filter(Boolean).join(" ");
  if (judged || taken) return { state: "empty", heading: "No pair is left for you now", text: `${waits} ${comes}` };
  if (!asked && !policies) return { state: "empty", heading: "The first pair is not here yet", text: beforeTheFirst(training) };
  if (policies) {
    const heading = training.state === "away" ? "Nothing to compare now" : "The next pair is being made";
    return { state: "empty", heading, text: `${waits} ${comes}`.trim() };
  }
  return { state: "empty", heading: "Nothing to label now", text: `All ${open ? "other pairs" : "pairs that were asked"} are answered. ${waits} ${comes}`.replace("  ", " ") };
}

/** @param {Status} status */
function nextOfSelection({ training }) {
  if (training.state === "away") return "The selection is not running: the next pair comes up here by itself once the same rlhf-bilevel select command runs again.";
  return `Two policies play an episode each, which takes some seconds. ${BY_ITSELF}`;
}

/** Which of the open pairs wait for others. @param {Status} status */
function forOthers({ judged, taken }) {
  const why = [];
  if (taken) why.push(`Somebody else is looking at ${some(taken, "pair")}; what is not answered within ten minutes comes to you.`);
  if (judged) why.push(`${some(judged, "pair")} that you answered ${judged === 1 ? "waits" : "wait"} for another person’s answer, too.`);
  return why.join(" ");
}

/** @param {Status} status */
function youSkipped({ skipped, people }) {
  if (!skipped) return "";
  const them = skipped === 1 ? "it" : "them";
  return `You skipped ${some(skipped, "pair")}: ${people > 1 ? `another person can judge ${them}, or you look again` : `you can look at ${them} again`}.`;
}
