// Turns a line of terminal output into elements. The line is only ever text: colours are classes, all other
// control sequences are dropped, and other control characters are shown as ^X.

// Colours and the like; any other sequence (moves, titles, links); a sequence that was cut short.
const SEQUENCE = /\x1b\[([\d;:]*)m|\x1b\[[0-?]*[ -/]*[@-~]|\x1b[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\|$)|\x1b[ -/]*[0-~]|\x1b\[?/g;
const CONTROL = /[\0-\x08\x0b-\x1f\x7f]/g;

export function plainStyle() {
  return { bold: false, faint: false, italic: false, under: false, strike: false, inverse: false, front: null, back: null };
}

function printable(text) {
  return text.replace(CONTROL, (c) => (c === "\x07" ? "" : `^${String.fromCharCode(c.charCodeAt(0) ^ 64)}`));
}

// A terminal shows what was written last over a line: progress bars write it again and again.
function lastWriting(text) {
  if (!text.includes("\r")) return text;
  const writings = text.split("\r");
  return writings.findLast((writing) => writing !== "") ?? "";
}

function cube(index) {
  if (index < 16) return { named: index };
  if (index > 231) {
    const level = 8 + 10 * (index - 232);
    return { rgb: `rgb(${level} ${level} ${level})` };
  }
  const level = (step) => (step ? 55 + 40 * step : 0);
  const n = index - 16;
  return { rgb: `rgb(${level(Math.floor(n / 36))} ${level(Math.floor(n / 6) % 6)} ${level(n % 6)})` };
}

function byte(value) {
  return Math.min(Math.max(value | 0, 0), 255);
}

function extended(codes) {
  const kind = codes.shift();
  if (kind === 5) return cube(byte(codes.shift()));
  if (kind === 2) return { rgb: `rgb(${byte(codes.shift())} ${byte(codes.shift())} ${byte(codes.shift())})` };
  return null;
}

function apply(style, parameters) {
  const codes = parameters.split(/[;:]/).map(Number);
  while (codes.length) {
    const code = codes.shift();
    if (code === 0) Object.assign(style, plainStyle());
    else if (code === 1) style.bold = true;
    else if (code === 2) style.faint = true;
    else if (code === 3) style.italic = true;
    else if (code === 4) style.under = true;
    else if (code === 7) style.inverse = true;
    else if (code === 9) style.strike = true;
    else if (code === 22) style.bold = style.faint = false;
    else if (code === 23) style.italic = false;
    else if (code === 24) style.under = false;
    else if (code === 27) style.inverse = false;
    else if (code === 29) style.strike = false;
    else if (code >= 30 && code <= 37) style.front = { named: code - 30 };
    else if (code === 38) style.front = extended(codes);
    else if (code === 39) style.front = null;
    else if (code >= 40 && code <= 47) style.back = { named: code - 40 };
    else if (code === 48) style.back = extended(codes);
    else if (code === 49) style.back = null;
    else if (code >= 90 && code <= 97) style.front = { named: code - 82 };
    else if (code >= 100 && code <= 107) style.back = { named: code - 92 };
  }
}

function styled(text, style) {
  const [front, back] = style.inverse ? [style.back, style.front ?? { named: 7 }] : [style.front, style.back];
  const names = [];
  for (const name of ["bold", "faint", "italic", "under", "strike"]) if (style[name]) names.push(`t-${name}`);
  if (front?.named !== undefined) names.push(`f-${front.named}`);
  if (back?.named !== undefined) names.push(`b-${back.named}`);
  if (!names.length && !front && !back) return document.createTextNode(text);
  const element = document.createElement("span");
  element.className = names.join(" ");
  if (front?.rgb) element.style.color = front.rgb;
  if (back?.rgb) element.style.backgroundColor = back.rgb;
  element.textContent = text;
  return element;
}

// Fills `element` with a line; `style` is what the line before left, and becomes what this one leaves.
export function write(element, line, style) {
  const text = lastWriting(line);
  if (!text.includes("\x1b")) {
    element.append(styled(printable(text), style));
    return;
  }
  let at = 0;
  for (const found of text.matchAll(SEQUENCE)) {
    if (found.index > at) element.append(styled(printable(text.slice(at, found.index)), style));
    if (found[1] !== undefined) apply(style, found[1]);
    at = found.index + found[0].length;
  }
  if (at < text.length) element.append(styled(printable(text.slice(at)), style));
}
