/** Exchanges the link's token for a session, then opens the page. A link that was opened in this browser before leads there too. */

import { element } from "./dom.js";

const NOT_THIS_ONE = [403, 422]; // a token that is not known, and what cannot be a token

/** @param {string} heading @param {string} text */
function tell(heading, text) {
  document.title = document.title.replace(/^[^·]*/, `${heading} `);
  element("heading", HTMLElement).textContent = heading;
  element("told", HTMLElement).textContent = text;
}

/** Of a link that somebody typed, it may be no text at all. */
function tokenOfLink() {
  const name = location.pathname.slice(location.pathname.lastIndexOf("/") + 1);
  try {
    return decodeURIComponent(name);
  } catch {
    return name;
  }
}

const headers = { "content-type": "application/json" };
try {
  const joined = await fetch("/api/join", { method: "POST", headers, body: JSON.stringify({ token: tokenOfLink() }) });
  if (joined.ok || (await fetch("/api/status")).ok) location.replace("/");
  else if (!NOT_THIS_ONE.includes(joined.status)) throw new Error(joined.statusText);
  else {
    tell("This link does not work", "A link works once, in one browser, until the label page is started again. Check that you have the whole link. "
      + "If you have, ask the person who sent it for a new one. Whoever runs the page starts rlhf-bilevel label again: it prints new links, and no answer is lost.");
  }
} catch {
  tell("The server does not answer", "Reload this page once it runs again.");
}
