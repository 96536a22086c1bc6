// Small curves of what a running job uses, a sample a second, five minutes back.

const MOST_SAMPLES = 300;
const FEWEST_SAMPLES = 60;
const WIDTH = 300;
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
    this.chart("Network", 2).add([sample.received, sample.sent], [`${bytes(sample.received)}/s in`, `${bytes(sample.sent)}/s out`]);
    for (const gpu of sample.gpus) {
      const name = sample.gpus.length > 1 ? `GPU ${gpu.name}` : "GPU";
      this.chart(name, 1).add([gpu.percent / 100], `${number(gpu.percent)} %`, 1);
      this.chart(`${name} memory`, 1).add([gpu.memory_used / gpu.memory_total], `${bytes(gpu.memory_used)} of ${bytes(gpu.memory_total)}`, 1);
    }
  }

  chart(name, curves) {
    let chart = this.charts.get(name);
    if (!chart) {
      chart = new Chart(name, curves);
      this.charts.set(name, chart);
      this.section.append(chart.element);
    }
    return chart;
  }
}

class Chart {
  constructor(name, curves) {
    this.series = Array.from({ length: curves }, () => []);
    this.element = html("div", "card metric");
    const head = html("div", "metric-head");
    this.value = html("b");
    head.append(html("span", "", name), this.value);
    this.drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    for (const y of [0, HEIGHT]) this.drawing.append(svg("line", { class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y }));
    this.curves = this.series.map((_, i) => {
      const rank = i ? " second" : "";
      const pair = { area: svg("path", { class: `area${rank}` }), curve: svg("path", { class: `curve${rank}` }) };
      this.drawing.append(pair.area, pair.curve);
      return pair;
    });
    this.element.append(head, this.drawing);
  }

  // `text` says the values, in one or a text for each; `top` is the value at the upper edge, else the largest there is.
  add(values, text, top) {
    if (typeof text === "string") this.value.textContent = text;
    else this.value.replaceChildren(...text.flatMap((one, i) => [html("i", i ? "key second" : "key"), one]));
    const highest = Math.max(...this.series.flat(), ...values, 1024);
    values.forEach((value, i) => {
      const series = this.series[i];
      series.push(value);
      if (series.length > MOST_SAMPLES) series.shift();
      const step = WIDTH / (Math.max(series.length, FEWEST_SAMPLES) - 1);
      const first = WIDTH - step * (series.length - 1);
      const points = series.map((one, x) => {
        const y = HEIGHT * (1 - Math.min(one / (top ?? highest), 1));
        return `${(first + step * x).toFixed(2)},${y.toFixed(2)}`;
      });
      this.curves[i].curve.setAttribute("d", `M${points.join("L")}`);
      this.curves[i].area.setAttribute("d", `M${first},${HEIGHT}L${points.join("L")}L${WIDTH},${HEIGHT}Z`);
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
  return Number(value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2)).toString();
}

function bytes(count) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let [value, unit] = [count, 0];
  while (value >= 999.5 && unit < units.length - 1) [value, unit] = [value / 1000, unit + 1];
  return `${unit ? Number(value.toPrecision(3)) : Math.round(value)} ${units[unit]}`;
}
