// Finds text in the lines of a log that are shown, also in those that come.

const SETTLE_MILLISECONDS = 150;

export class LogSearch {
  constructor(section, view, onJump) {
    this.view = view;
    this.onJump = onJump;
    this.input = section.querySelector("[data-search]");
    this.found = section.querySelector("[data-found]");
    this.hits = []; // in the order of the log
    this.at = -1;
    this.timer = 0;
    this.input.addEventListener("input", () => {
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.begin(), SETTLE_MILLISECONDS);
    });
    this.input.addEventListener("keydown", (pressed) => {
      if (pressed.key !== "Enter") return;
      pressed.preventDefault();
      if (this.wanted !== this.sought()) this.begin();
      else this.go(pressed.shiftKey ? -1 : 1);
    });
    section.querySelector("[data-next]").addEventListener("click", () => this.go(1));
    section.querySelector("[data-previous]").addEventListener("click", () => this.go(-1));
  }

  get isActive() {
    return Boolean(this.wanted);
  }

  sought() {
    return this.input.value.toLowerCase();
  }

  matches(line) {
    return line.textContent.toLowerCase().includes(this.wanted);
  }

  begin() {
    for (const line of this.hits) line.classList.remove("hit", "at");
    this.hits = [];
    this.at = -1;
    this.wanted = this.sought();
    if (this.wanted) {
      for (const line of this.view.querySelectorAll(".log-line")) if (this.matches(line)) this.hits.push(line);
      for (const line of this.hits) line.classList.add("hit");
      if (this.hits.length) this.go(-1);
    }
    this.tell();
  }

  go(step) {
    if (!this.hits.length) return;
    this.hits[this.at]?.classList.remove("at");
    const from = this.at < 0 && step > 0 ? -1 : this.at < 0 ? 0 : this.at;
    this.at = (from + step + this.hits.length) % this.hits.length;
    const line = this.hits[this.at];
    line.classList.add("at");
    this.onJump();
    line.scrollIntoView({ block: "center", inline: "nearest" });
    this.tell();
  }

  added(lines, isBefore) {
    if (!this.wanted) return;
    const hits = lines.filter((line) => this.matches(line));
    for (const line of hits) line.classList.add("hit");
    if (isBefore) {
      this.hits.unshift(...hits);
      if (this.at >= 0) this.at += hits.length;
    } else {
      this.hits.push(...hits);
    }
    this.tell();
  }

  removed(chunk) {
    if (!this.hits.length) return;
    const current = this.hits[this.at];
    this.hits = this.hits.filter((line) => !chunk.contains(line));
    this.at = this.hits.indexOf(current);
    this.tell();
  }

  forget() {
    this.hits = [];
    this.at = -1;
    this.tell();
  }

  tell() {
    if (!this.wanted) this.found.textContent = "";
    else this.found.textContent = this.at >= 0 ? `${this.at + 1}/${this.hits.length}` : String(this.hits.length);
  }
}
