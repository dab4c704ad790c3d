/** Exchanges the link's token for a session, then opens the page. A link that was opened in this browser before leads there too. */

import { element } from "./dom.js";

const told = element("told", HTMLElement);
const token = decodeURIComponent(location.pathname.slice(location.pathname.lastIndexOf("/") + 1));
const headers = { "content-type": "application/json" };
try {
  const joined = await fetch("/api/join", { method: "POST", headers, body: JSON.stringify({ token }) });
  if (joined.ok || (await fetch("/api/status")).ok) location.replace("/");
  else if (joined.status !== 403) throw new Error(joined.statusText);
  else told.textContent = "This link was opened before, or is of an earlier start. "
    + "Starting rlhf-bilevel label again prints a new one; no answer is lost by it.";
} catch {
  told.textContent = "The server does not answer. Reload this page once it runs again.";
}
