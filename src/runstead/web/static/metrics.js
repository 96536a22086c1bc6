// Small curves of what a running job uses, a sample a second, five minutes back.

const SAMPLES = 300;
const HEIGHT = 48;
const SVG = "http://www.w3.org/2000/svg";

export function startMetrics(section) {
  new MetricsView(section);
}

class MetricsView {
  constructor(section) {
    this.section = section;
    this.charts = new Map();
    this.source = null;
    document.addEventListener("runstead:changed", () => this.look());
    document.addEventListener("visibilitychange", () => (document.hidden ? this.disconnect() : this.look()));
    this.look();
  }

  look() {
    const running = document.querySelector("[data-stage]")?.dataset.stage === "RUNNING";
    this.section.classList.toggle("over", !running);
    if (!running) this.disconnect();
    else if (!this.source && !document.hidden) this.connect();
  }

  connect() {
    const source = (this.source = new EventSource(this.section.dataset.metrics));
    source.addEventListener("sample", (event) => this.add(JSON.parse(event.data)));
    source.addEventListener("end", () => this.disconnect());
    source.addEventListener("error", () => {
      if (source.readyState === EventSource.CLOSED) this.disconnect();
    });
  }

  disconnect() {
    this.source?.close();
    this.source = null;
  }

  add(sample) {
    this.section.hidden = false;
    this.chart("CPU", 1).add([sample.cpu_percent / 100], `${number((sample.cpu_percent / 100) * sample.cpu_cores)} of ${number(sample.cpu_cores)} cores`, 1);
    this.chart("Memory", 1).add([sample.memory_used / sample.memory_total], `${bytes(sample.memory_used)} of ${bytes(sample.memory_total)}`, 1);
    this.chart("Network", 2, ["in", "out"]).add([sample.received, sample.sent], `${bytes(sample.received)}/s in, ${bytes(sample.sent)}/s out`);
    for (const gpu of sample.gpus) {
      const name = sample.gpus.length > 1 ? `GPU ${gpu.name}` : "GPU";
      this.chart(name, 1).add([gpu.percent / 100], `${number(gpu.percent)} %`, 1);
      this.chart(`${name} memory`, 1).add([gpu.memory_used / gpu.memory_total], `${bytes(gpu.memory_used)} of ${bytes(gpu.memory_total)}`, 1);
    }
  }

  chart(name, curves, keys) {
    let chart = this.charts.get(name);
    if (!chart) {
      chart = new Chart(name, curves, keys);
      this.charts.set(name, chart);
      this.section.append(chart.element);
    }
    return chart;
  }
}

class Chart {
  constructor(name, curves, keys = []) {
    this.series = Array.from({ length: curves }, () => []);
    this.element = html("div", "card metric");
    const head = html("div", "metric-head");
    this.value = html("b");
    const title = html("span");
    title.append(name);
    keys.forEach((key, i) => {
      title.append(i ? "" : " ", html("i", i ? "key second" : "key"), html("span", "dim", key));
    });
    head.append(title, this.value);
    this.drawing = svg("svg", { viewBox: `0 0 ${SAMPLES - 1} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    this.drawing.append(svg("line", { class: "grid", x1: 0, x2: SAMPLES - 1, y1: HEIGHT, y2: HEIGHT }), svg("line", { class: "grid", x1: 0, x2: SAMPLES - 1, y1: 0, y2: 0 }));
    this.curves = this.series.map((_, i) => {
      const rank = i ? " second" : "";
      const pair = { area: svg("path", { class: `area${rank}` }), curve: svg("path", { class: `curve${rank}` }) };
      this.drawing.append(pair.area, pair.curve);
      return pair;
    });
    this.element.append(head, this.drawing);
  }

  // `top` is the value at the upper edge; without one it is the largest there is.
  add(values, text, top) {
    this.value.textContent = text;
    const highest = Math.max(...this.series.flat(), ...values, 1024);
    values.forEach((value, i) => {
      const series = this.series[i];
      series.push(value);
      if (series.length > SAMPLES) series.shift();
      const first = SAMPLES - series.length;
      const points = series.map((one, x) => `${first + x},${(HEIGHT * (1 - Math.min(one / (top ?? highest), 1))).toFixed(1)}`);
      this.curves[i].curve.setAttribute("d", `M${points.join("L")}`);
      this.curves[i].area.setAttribute("d", `M${first},${HEIGHT}L${points.join("L")}L${SAMPLES - 1},${HEIGHT}Z`);
    });
  }
}

function html(name, className = "", text = "") {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text) element.textContent = text;
  return element;
}

function svg(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

function number(value) {
  return value >= 100 ? value.toFixed(0) : Number(value.toPrecision(2)).toString();
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let [value, unit] = [count, 0];
  while (value >= 999.5 && unit < units.length - 1) [value, unit] = [value / 1000, unit + 1];
  return `${unit ? Number(value.toPrecision(3)) : Math.round(value)} ${units[unit]}`;
}
