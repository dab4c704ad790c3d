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
export function sentence({ training, needed, open, asked }) {
  const { state, steps, step, doing = "", again } = training;
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
        : hasAll(training) ? " It has all its labels." : needed && asked && open ? ` ${some(needed, "more answer")} until the reward is updated.` : "";
      return [`Training goes on, ${at}`, `: ${doing.replace(/\.$/, "")}`, `.${update}`];
    }
  }
}

/** In place of what training does. */
export const NO_CONNECTION = "No connection: the server of this page has stopped, or the network is gone.";
export const NO_SESSION = "What training does is shown to those who are signed in.";

/** How many labels training has used, and how many it predicted before it learnt from them. @param {Training} training */
export function used({ labels = 0, wanted = 0, again = 0, fresh_accuracy = null, fresh_labels = 0 }) {
  if (!wanted) return "";
  const kept = again ? `; ${number(again)} more ${again === 1 ? "is" : "are"} kept, and used again later` : "";
  const predicted = fresh_accuracy == null ? "" : `; it predicted ${Math.round(100 * fresh_accuracy)} % of the last ${number(fresh_labels)}`;
  return `${number(labels)} of ${some(wanted, "label")} used${kept}${predicted}`;
}

/** @param {Training} training @param {string} unknown what is said where it is not known */
function when({ next_pairs: seconds }, unknown) {
  if (seconds == null) return unknown;
  if (seconds < 60) return "in less than a minute";
  const minutes = Math.round(seconds / 60);
  return `in about ${minutes < 90 ? some(minutes, "minute") : some(Math.round(minutes / 60), "hour")}`;
}

/** Before the first question. @param {Training} training */
function beforeTheFirst(training) {
  const here = "It comes up here by itself";
  if (!training.steps) return `Training has not begun yet. ${here} once training asks.`;
  const again = training.command ? ` It runs again with: ${training.command}` : "";
  if (training.state === "away") return `Training is not running, and has not asked yet. ${here} once training runs again.${again}`;
  const time = when(training, "once it has enough of them");
  return `The agent collects its first episodes. The first pair comes ${time}. ${here}; you can leave this page open.`;
}

/** Where every pair that was asked is answered. */
const NOTHING = {
  waiting: "All pairs that were asked are answered. Training goes on in a moment.",
  silent: "All pairs that were asked are answered. If training is only busy, it asks again later.",
  away: "All pairs that were asked are answered. Training is not running: the next pair comes up here by itself once it runs again.",
};

/**
 * Why there is no pair, and what comes.
 *
 * @param {Status | null} status @param {boolean} connected @param {number} unsent answers
 * @returns {Rest}
 */
export function rest(status, connected, unsent) {
  if (!connected) return { state: "away", heading: "No connection", text: "The next pair comes up here by itself once it is back. Your answers are kept until then." };
  if (!status) return { state: "loading", heading: "Loading the first pair …", text: "" };
  if (unsent) return { state: "loading", heading: "Sending your answer …", text: "" };
  const { training, asked, open, skipped, judged, taken } = status;
  const { command = "" } = training;
  if (training.state === "ended") return { state: "empty", heading: "All done", text: `This run has ended. Thank you.${command && ` To see the agent: ${command}`}` };
  if (hasAll(training)) {
    const more = command && (training.state === "away" ? ` It goes on with: ${command}` : ` It practises until its last step. To see the agent then: ${command}`);
    return { state: "empty", heading: "All done", text: `Training has all the labels that it asked for. Thank you.${more}` };
  }
  if (open > skipped + judged + taken) return { state: "loading", heading: "Loading the next pair …", text: "" };
  const later = " The next pair comes up here by itself; you can leave this page open.";
  if (open) return { state: "empty", heading: "No pair is left for you now", text: notForYou(status) + later };
  if (!asked) return { state: "empty", heading: "The first pair is not here yet", text: beforeTheFirst(training) };
  const { state } = training;
  const text = state === "on" ? `All pairs that were asked are answered. Training goes on, and asks again ${when(training, "later")}.` : NOTHING[state];
  return { state: "empty", heading: "Nothing to label now", text: state === "away" ? text + (command && ` It runs again with: ${command}`) : text + later };
}

/** Why none of the open pairs comes to this labeller. @param {Status} status */
function notForYou({ skipped, judged, taken }) {
  const why = [];
  if (taken) why.push(`Somebody else is looking at ${some(taken, "pair")}; what is not answered within ten minutes comes to you.`);
  if (judged) why.push(`${some(judged, "pair")} that you answered ${judged === 1 ? "waits" : "wait"} for another person’s answer, too.`);
  if (skipped) why.push(`You skipped ${some(skipped, "pair")}: another person can judge ${skipped === 1 ? "it" : "them"}, or you look again.`);
  return why.join(" ");
}
