// Keeps parts of a page as they are on the server: looks again every few seconds while somebody can see it.
//
// <div data-live="name" data-version="..." data-every="2">: the part is replaced when its version is another.

const policy = window.trustedTypes?.createPolicy("runstead", { createHTML: (text) => text });

// Only ever called with pages of this server, in which every value is escaped.
function parse(text) {
  return new DOMParser().parseFromString(policy ? policy.createHTML(text) : text, "text/html");
}

let timer = 0;
let looking = false;

function pause() {
  const parts = [...document.querySelectorAll("[data-live][data-every]")];
  return Math.min(...parts.map((part) => Number(part.dataset.every))) * 1000;
}

function plan() {
  clearTimeout(timer);
  const milliseconds = pause();
  if (Number.isFinite(milliseconds) && !document.hidden) timer = setTimeout(refresh, milliseconds);
}

export async function refresh() {
  if (looking) return;
  looking = true;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
    if (answer.redirected && new URL(answer.url).pathname === "/login") {
      location.reload();
      return;
    }
    if (answer.ok) adopt(parse(await answer.text()));
  } catch {
    // The server is away for a moment; the next look will tell.
  } finally {
    looking = false;
    plan();
  }
}

function adopt(fresh) {
  let changed = false;
  for (const part of document.querySelectorAll("[data-live]")) {
    const other = fresh.querySelector(`[data-live="${CSS.escape(part.dataset.live)}"]`);
    if (!other || other.dataset.version === part.dataset.version) continue;
    const focused = focusPath(part);
    part.replaceWith(document.adoptNode(other));
    refocus(other, focused);
    changed = true;
  }
  if (!changed) return;
  document.title = fresh.title;
  document.dispatchEvent(new Event("runstead:changed"));
}

// What was focused in a part is found again by its place among the things that can be.
const FOCUSABLE = "a, button, input, summary";

function focusPath(part) {
  return part.contains(document.activeElement) ? [...part.querySelectorAll(FOCUSABLE)].indexOf(document.activeElement) : -1;
}

function refocus(part, index) {
  if (index >= 0) part.querySelectorAll(FOCUSABLE)[index]?.focus({ preventScroll: true });
}

export function startLive() {
  plan();
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) clearTimeout(timer);
    else if (Number.isFinite(pause())) refresh();
  });
}
