// The log of a job: its last lines first, earlier ones on demand, new ones as they come.
//
// The page holds a window of the log, at most MOST_LINES long, in chunks; the browser lays out only the chunks that
// are seen. Each chunk knows the places in the log where it begins and ends, so a window can grow at its start and be
// cut at its end, or the other way around, and go on from there.

import { plainStyle, write } from "./ansi.js";
import { refresh } from "./live.js";
import { LogSearch } from "./search.js";

const MOST_LINES = 20000;
const CHUNK_LINES = 500;
const FEW_LINES = 200;
const MOST_CHARACTERS = 1_000_000; // shown at once, as they travel
const FLUSH_MILLISECONDS = 60;
const NEAR_END_PIXELS = 8;
const START = "===== Job started";

export function startLog(section) {
  new LogView(section);
}

class LogView {
  constructor(section) {
    this.section = section;
    this.view = section.querySelector("[data-view]");
    this.list = section.querySelector("[data-chunks]");
    this.earlier = section.querySelector("[data-earlier]");
    this.latest = section.querySelector("[data-latest]");
    this.note = section.querySelector("[data-note]");
    this.chunks = []; // { element, start, end, count }
    this.count = 0;
    this.waiting = []; // what came and is not shown yet, as JSON
    this.style = plainStyle();
    this.source = null;
    this.over = false; // nothing will follow what is there
    this.atEnd = true; // the window reaches to the end of the log
    this.following = true;
    this.search = new LogSearch(section, this.view, () => this.setFollowing(false));
    this.listen();
    this.say("Loading…");
    this.showLatest();
  }

  listen() {
    this.earlier.addEventListener("click", () => this.showEarlier());
    this.latest.addEventListener("click", () => this.showLatest());
    this.view.addEventListener("scroll", () => this.scrolled(), { passive: true });
    this.view.addEventListener("wheel", (turned) => turned.deltaY < 0 && this.setFollowing(false), { passive: true });
    new ResizeObserver(() => this.following && this.toEnd()).observe(this.list);
    document.addEventListener("visibilitychange", () => (document.hidden ? this.disconnect() : this.connect()));
    for (const button of this.section.querySelectorAll("[data-toggle]")) {
      button.addEventListener("click", () => this.toggle(button.dataset.toggle));
    }
  }

  toggle(name) {
    const button = this.section.querySelector(`[data-toggle="${name}"]`);
    const on = button.getAttribute("aria-pressed") !== "true";
    if (name === "follow") {
      if (on && !this.atEnd) this.showLatest();
      else this.setFollowing(on);
      if (on) this.toEnd();
      return;
    }
    button.setAttribute("aria-pressed", String(on));
    this.view.classList.toggle(name, on);
    if (this.following) this.toEnd();
  }

  setFollowing(on) {
    this.following = on;
    this.view.classList.toggle("follows", on);
    this.section.querySelector('[data-toggle="follow"]').setAttribute("aria-pressed", String(on));
  }

  isNearEnd() {
    return this.view.scrollHeight - this.view.scrollTop - this.view.clientHeight < NEAR_END_PIXELS;
  }

  toEnd() {
    this.view.scrollTop = this.view.scrollHeight;
    this.end = { top: this.view.scrollTop, height: this.view.scrollHeight };
  }

  scrolled() {
    if (this.following) {
      // With another height it was the layout that moved, and the observer sees to it.
      const moved = this.end && this.view.scrollTop < this.end.top - NEAR_END_PIXELS;
      if (moved && this.view.scrollHeight === this.end.height) this.setFollowing(false);
    } else if (this.atEnd && !this.search.isActive && this.isNearEnd()) {
      this.setFollowing(true);
    }
  }

  say(text) {
    this.note.textContent = text;
    this.note.hidden = !text;
  }

  async fetchLines(before) {
    const address = before === null ? this.section.dataset.lines : `${this.section.dataset.lines}?before=${encodeURIComponent(before)}`;
    const answer = await fetch(address, { cache: "no-store" });
    if (answer.status === 401) location.reload();
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    return answer.json();
  }

  async showLatest() {
    this.disconnect();
    let part;
    try {
      part = await this.fetchLines(null);
    } catch {
      this.say("The log could not be loaded; this page tries again.");
      setTimeout(() => this.showLatest(), 3000);
      return;
    }
    this.clear();
    this.append(part);
    this.earlier.hidden = !part.lines.length || part.start === "1:0";
    this.place = part.end;
    await this.fill();
    this.setFollowing(true);
    this.toEnd();
    this.connect();
  }

  // A part is of one attempt: with a short last one, the one before is shown too.
  async fill() {
    for (let tries = 0; tries < 5 && this.count && this.count < FEW_LINES && !this.earlier.hidden; tries += 1) {
      await this.showEarlier();
    }
  }

  async showEarlier() {
    if (!this.chunks.length || this.earlier.disabled) return;
    this.setFollowing(false);
    this.earlier.disabled = true;
    try {
      const part = await this.fetchLines(this.chunks[0].start);
      if (part.lines.length) this.prepend(part);
      this.earlier.hidden = !part.lines.length || part.start === "1:0";
    } catch (problem) {
      this.say(`Earlier lines could not be loaded: ${problem.message}`);
    } finally {
      this.earlier.disabled = false;
    }
  }

  clear() {
    this.list.replaceChildren();
    this.chunks = [];
    this.count = 0;
    this.waiting = [];
    this.style = plainStyle();
    this.atEnd = true;
    this.latest.hidden = true;
    this.search.forget();
  }

  connect() {
    if (this.source || this.over || !this.atEnd || document.hidden || this.place === undefined) return;
    const source = (this.source = new EventSource(`${this.section.dataset.events}?from=${encodeURIComponent(this.place)}`));
    source.addEventListener("open", () => this.describe());
    source.addEventListener("lines", (event) => {
      this.place = event.lastEventId;
      this.waiting.push(event.data);
      if (this.waiting.length === 1) setTimeout(() => this.flush(), FLUSH_MILLISECONDS);
    });
    source.addEventListener("end", () => {
      this.over = true;
      this.disconnect();
      this.flush();
      this.describe();
      refresh();
    });
    source.addEventListener("error", () => {
      if (source.readyState !== EventSource.CLOSED) return;
      // Refused, not interrupted: signed out, or the server is starting.
      this.disconnect();
      setTimeout(() => this.connect(), 3000);
    });
    this.describe();
  }

  disconnect() {
    this.source?.close();
    this.source = null;
  }

  describe() {
    if (this.count) this.say("");
    else this.say(this.over ? "The job wrote nothing." : "Nothing yet. Lines appear here as the job writes them.");
  }

  flush() {
    const parts = this.waiting;
    this.waiting = [];
    let size = 0;
    for (let i = parts.length - 1; i >= 0; i -= 1) {
      size += parts[i].length;
      if (i && size > MOST_CHARACTERS && this.following) {
        // More came than anybody can read: begin anew with the end of it. The rest can be had as earlier lines.
        parts.splice(0, i);
        this.clear();
        this.earlier.hidden = false;
        break;
      }
    }
    for (const part of parts) {
      if (!this.atEnd) break;
      if (!this.following && this.count > MOST_LINES) {
        // Somebody reads further up: what they read stays, the rest can be had by the button.
        this.atEnd = false;
        this.latest.hidden = false;
        this.disconnect();
        break;
      }
      this.append(JSON.parse(part));
    }
    if (this.following) {
      this.trimStart();
      this.toEnd();
    }
    this.describe();
  }

  append(part) {
    if (!part.lines.length) return;
    let last = this.chunks.at(-1);
    if (!last || last.count >= CHUNK_LINES) {
      last = { element: chunkElement(), start: part.start, end: part.end, count: 0 };
      this.chunks.push(last);
      this.list.append(last.element);
    }
    const lines = part.lines.map((line) => lineElement(line, this.style));
    last.element.append(...lines);
    last.end = part.end;
    last.count += lines.length;
    setHeight(last);
    this.count += lines.length;
    this.search.added(lines, false);
  }

  prepend(part) {
    const style = plainStyle();
    const lines = part.lines.map((line) => lineElement(line, style));
    const chunk = { element: chunkElement(), start: part.start, end: part.end, count: lines.length };
    chunk.element.append(...lines);
    const anchor = this.chunks[0].element;
    const before = anchor.getBoundingClientRect().top;
    this.chunks.unshift(chunk);
    this.list.prepend(chunk.element);
    this.view.scrollTop += anchor.getBoundingClientRect().top - before;
    this.count += lines.length;
    this.search.added(lines, true);
    setHeight(chunk);
    this.trimEnd();
  }

  trimStart() {
    while (this.count > MOST_LINES && this.chunks.length > 1) {
      this.remove(this.chunks.shift());
      this.earlier.hidden = false;
    }
  }

  trimEnd() {
    while (this.count > MOST_LINES && this.chunks.length > 1) {
      this.remove(this.chunks.pop());
      this.atEnd = false;
      this.latest.hidden = false;
      this.disconnect();
    }
  }

  remove(chunk) {
    this.count -= chunk.count;
    this.search.removed(chunk.element);
    chunk.element.remove();
  }
}

function chunkElement() {
  const element = document.createElement("div");
  element.className = "chunk";
  return element;
}

// What a chunk takes that is not laid out yet: a line is 1.5 em, if it is not wrapped.
function setHeight(chunk) {
  chunk.element.style.containIntrinsicBlockSize = `auto ${chunk.count * 1.5}em`;
}

function lineElement(line, style) {
  const element = document.createElement("div");
  element.className = line.data.startsWith(START) ? "log-line start" : "log-line";
  element.dataset.time = line.timestamp.slice(11, 23);
  write(element, line.data, style);
  return element;
}
