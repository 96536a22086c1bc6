// Writes times as people say them, and keeps them right: "3 min ago", "2 min 5 s".

function span(seconds) {
  const whole = Math.max(Math.floor(seconds), 0);
  const [days, hours, minutes, rest] = [Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, Math.floor(whole / 60) % 60, whole % 60];
  if (days) return hours ? `${days} d ${hours} h` : `${days} d`;
  if (hours) return minutes ? `${hours} h ${minutes} min` : `${hours} h`;
  if (minutes) return rest ? `${minutes} min ${rest} s` : `${minutes} min`;
  return `${whole} s`;
}

function ago(seconds, at) {
  if (seconds < 45) return "just now";
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.round(seconds / 3600)} h ago`;
  if (seconds < 7 * 86400) return `${Math.round(seconds / 86400)} d ago`;
  return at.toLocaleDateString(undefined, { year: "numeric", month: "short", day: "numeric" });
}

function write() {
  const now = Date.now();
  for (const element of document.querySelectorAll("time[data-ago], time[data-since]")) {
    const at = new Date(element.dateTime);
    const seconds = (now - at.getTime()) / 1000;
    const text = "since" in element.dataset ? span(seconds) : ago(seconds, at);
    if (element.textContent !== text) {
      element.textContent = text;
      element.title = at.toLocaleString();
    }
  }
}

export function startTimes() {
  write();
  setInterval(write, 1000);
  document.addEventListener("runstead:changed", write);
}
