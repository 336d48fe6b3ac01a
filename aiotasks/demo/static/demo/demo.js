// Keeps the page up to date: fetches it again and again, and takes over the parts that have changed.

const INTERVAL = 1000; // milliseconds
const PATIENCE = 5000;

let seen = new Date();

async function update() {
  let response;
  try {
    response = await fetch(location.pathname, { signal: AbortSignal.timeout(PATIENCE) });
  } catch {
    return warn("The site doesn't answer.");
  }
  if (response.status === 503) return warn("The database is away.");
  if (!response.ok) return warn(`The site has answered with an error (${response.status}).`);
  const page = new DOMParser().parseFromString(await response.text(), "text/html");
  // Surveys have been started elsewhere, or the database is back.
  if (page.body.dataset.surveys !== document.body.dataset.surveys) return location.reload();
  seen = new Date();
  warn("");
  for (const part of document.querySelectorAll("[data-live]")) {
    const fresh = page.getElementById(part.id);
    if (!part.isEqualNode(fresh)) replace(part, fresh);
  }
  // A bar follows its task by itself, until it has ended. Has somebody retried it, it begins anew.
  for (const fresh of page.querySelectorAll("[data-aiotasks-id]")) {
    const bar = document.querySelector(`[data-aiotasks-id="${fresh.dataset.aiotasksId}"]`);
    const hasEnded = !bar.dataset.aiotasksToken;
    if (hasEnded && bar.dataset.aiotasksStatus !== fresh.dataset.aiotasksStatus) bar.replaceWith(fresh);
  }
}

function replace(part, fresh) {
  const hadFocus = part.contains(document.activeElement);
  part.replaceWith(fresh);
  // The button may be gone: then the keyboard goes on from the heading above it.
  if (hadFocus) (fresh.querySelector("button") ?? fresh.closest("section, main").querySelector("h1, h2")).focus();
}

function warn(reason) {
  const text = reason && `Stale since ${seen.toLocaleTimeString()}: ${reason} Trying again…`;
  const stale = document.getElementById("stale");
  // Only if it has changed, because screen readers read it then.
  if (stale.textContent !== text) stale.textContent = text;
  document.body.classList.toggle("is-stale", Boolean(reason));
}

async function keepUpdating() {
  if (!document.hidden) await update();
  setTimeout(keepUpdating, INTERVAL);
}

setTimeout(keepUpdating, INTERVAL);
