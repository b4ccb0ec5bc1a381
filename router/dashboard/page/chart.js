// Charts over time, drawn as SVG: lines with gaps, or stacked bars. Pointer, touch and arrow keys read a moment's values.

import { h, s } from "./dom.js";

const LEFT = 46;
const RIGHT = 12;
const TOP = 12;
const BOTTOM = 24;
const MOST_BARS = 60;

export class Chart {
  // what: {label, height, format, kind: "lines" | "bars", series: [{key, name, tone, width?, dash?}], empty}
  constructor(what) {
    this.what = what;
    this.svg = s("svg", { class: "chart", "aria-hidden": "true" });
    this.tip = h("div", { class: "tip", hidden: true });
    this.live = h("p", { class: "sr", "aria-live": "polite" });
    this.node = h(
      "div",
      { class: "chartbox", tabindex: "0", role: "group", "aria-roledescription": "chart", "aria-label": what.label },
      this.svg, this.tip, this.live,
    );
    this.points = [];
    this.at = null;
    this.node.addEventListener("pointermove", (event) => this.point(event));
    this.node.addEventListener("pointerdown", (event) => this.point(event));
    this.node.addEventListener("pointerleave", () => this.leave());
    this.node.addEventListener("blur", () => this.leave());
    this.node.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.node);
  }

  // points: as Store.points; lines: [{value, text}] that stand across, such as an SLO
  update(points, span, lines = []) {
    this.span = span;
    this.lines = lines.filter((line) => line.value !== null && line.value !== undefined);
    this.points = this.what.kind === "bars" ? grouped(points, this.what.series) : points;
    this.draw();
  }

  draw() {
    const width = Math.floor(this.node.clientWidth);
    if (!width || !this.span) return;
    const height = this.what.height;
    this.width = width;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.svg.setAttribute("height", height);
    const top = this.highest();
    const ticks = niceTicks(top === 0 ? 1 : top, this.what.kind === "bars");
    this.max = ticks[ticks.length - 1];
    const grid = s("g");
    for (const tick of ticks) {
      const y = this.y(tick);
      grid.append(
        s("line", { class: tick === 0 ? "axis" : "grid", x1: LEFT, x2: width - RIGHT, y1: y, y2: y }),
        s("text", { class: "tick", x: LEFT - 8, y: y + 4, "text-anchor": "end" }, this.what.format(tick)),
      );
    }
    for (const [age, text, anchor] of timeTicks(this.span, width)) {
      grid.append(s("text", { class: "tick", x: this.x(age), y: height - 6, "text-anchor": anchor }, text));
    }
    if (top === 0) this.lines = [];
    const marks = top === 0 ? [] : this.what.kind === "bars" ? this.bars() : [...this.paths(), this.peak()];
    this.cursor = s("g", { class: "cursor" });
    this.svg.replaceChildren(grid, s("g", null, marks), this.across(), this.cursor);
    if (top === 0) {
      this.svg.append(s("text", { class: "none", x: (LEFT + width) / 2, y: (TOP + height - BOTTOM) / 2, "text-anchor": "middle" }, this.what.empty));
    }
    this.mark();
  }

  highest() {
    let most = 0;
    for (const point of this.points) {
      const values = this.what.series.map((one) => point[one.key] || 0);
      most = Math.max(most, this.what.kind === "bars" ? values.reduce((a, b) => a + b, 0) : Math.max(...values));
    }
    // An SLO far above everything would press the curves flat; its line is left out then, its value is in the head.
    if (this.what.kind === "lines") most = Math.min(most, 2.5 * this.usual());
    for (const line of this.lines) if (most > 0 && line.value < most * 4) most = Math.max(most, line.value * 1.08);
    return most;
  }

  // The highest of all series but the last, and of the SLOs: one rare peak beyond it must not press the rest flat.
  usual() {
    const keys = this.what.series.slice(0, -1).map((one) => one.key);
    const slos = this.lines.map((line) => line.value);
    return Math.max(0, ...slos, ...this.points.flatMap((point) => keys.map((key) => point[key] || 0)));
  }

  x(age) {
    return LEFT + (1 - age / this.span) * (this.width - LEFT - RIGHT);
  }

  y(value) {
    return TOP + (1 - value / this.max) * (this.what.height - TOP - BOTTOM);
  }

  paths() {
    return this.what.series.map((one) => {
      let path = "";
      let pen = false;
      this.points.forEach((point, index) => {
        const value = point[one.key];
        if (value === null || value === undefined) {
          pen = false;
          return;
        }
        const place = `${this.x(point.age).toFixed(1)} ${this.y(Math.min(value, this.max)).toFixed(1)}`;
        const next = this.points[index + 1];
        const alone = !pen && (!next || next[one.key] === null);
        path += pen ? ` L ${place}` : ` M ${place}`;
        if (alone) path += " h 0.01"; // a round cap: a dot
        pen = true;
      });
      return s("path", { class: `line t-${one.tone}`, d: path || "M 0 0", "stroke-width": one.width || 2, "stroke-dasharray": one.dash });
    });
  }

  // How high the highest point beyond the drawing is.
  peak() {
    const key = this.what.series[this.what.series.length - 1].key;
    const highest = this.points.reduce((best, point) => ((point[key] || 0) > (best[key] || 0) ? point : best), this.points[0]);
    if (!(highest[key] > this.max)) return "";
    const x = this.x(highest.age);
    const right = x > this.width / 2;
    return s("text", { class: "slo-text", x: right ? x - 6 : x + 6, y: TOP + 8, "text-anchor": right ? "end" : "start" }, `▲ ${this.what.format(highest[key])}`);
  }

  bars() {
    const each = (this.width - LEFT - RIGHT) / Math.max(1, this.points.length);
    const gap = each > 6 ? 1.5 : each > 3 ? 1 : 0.4;
    const made = [];
    for (const point of this.points) {
      let base = 0;
      for (const one of this.what.series) {
        const value = point[one.key] || 0;
        if (value <= 0) continue;
        const y = this.y(base + value);
        const tall = this.y(base) - y;
        made.push(s("rect", { class: `bar t-${one.tone}`, x: (this.x(point.age) - each / 2 + gap / 2).toFixed(2), y: y.toFixed(2), width: (each - gap).toFixed(2), height: Math.max(0.8, tall - (base > 0 ? 0.8 : 0)).toFixed(2) }));
        base += value;
      }
    }
    return made;
  }

  across() {
    const group = s("g");
    const taken = []; // heights of texts that stand at the left already
    for (const line of this.lines) {
      if (line.value > this.max) continue;
      const y = this.y(line.value);
      const above = y - TOP > 16;
      const beside = taken.filter((other) => Math.abs(other - y) < 15).length;
      taken.push(y);
      group.append(
        s("line", { class: "slo", x1: LEFT, x2: this.width - RIGHT, y1: y, y2: y }),
        s("text", { class: "slo-text", x: LEFT + 6 + beside * 150, y: above ? y - 5 : y + 14 }, line.text),
      );
    }
    return group;
  }

  // ---- reading values ----

  point(event) {
    const box = this.node.getBoundingClientRect();
    const age = (1 - (event.clientX - box.left - LEFT) / (this.width - LEFT - RIGHT)) * this.span;
    let best = null;
    for (const point of this.points) if (best === null || Math.abs(point.age - age) < Math.abs(best.age - age)) best = point;
    this.at = best && best.age;
    this.mark();
  }

  key(event) {
    if (!["ArrowLeft", "ArrowRight", "Escape"].includes(event.key) || !this.points.length) return;
    event.preventDefault();
    if (event.key === "Escape") return void this.leave();
    const index = this.points.findIndex((point) => point.age === this.at);
    const step = event.key === "ArrowLeft" ? -1 : 1;
    const next = index < 0 ? this.points.length - 1 : Math.min(this.points.length - 1, Math.max(0, index + step));
    this.at = this.points[next].age;
    this.mark();
    this.live.textContent = [...this.tip.children].map((one) => one.textContent).join(", ");
  }

  leave() {
    this.at = null;
    this.mark();
  }

  mark() {
    const point = this.at === null ? null : this.points.find((one) => one.age === this.at);
    this.tip.hidden = !point;
    this.cursor.replaceChildren();
    if (!point) return;
    const x = this.x(point.age);
    this.cursor.append(s("line", { x1: x, x2: x, y1: TOP, y2: this.what.height - BOTTOM }));
    const rows = this.what.series
      .filter((one) => this.what.kind === "lines" || point[one.key] > 0)
      .map((one) => h("div", { class: "tiprow" }, h("i", { class: `dot t-${one.tone}` }), h("span", null, `${one.name} `), h("b", null, this.what.format(point[one.key]))));
    if (this.what.kind === "bars" && rows.length === 0) rows.push(h("div", null, "nothing"));
    this.tip.replaceChildren(h("div", { class: "tiphead" }, `${agoText(point.age)} `), ...rows);
    const wide = this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(0, Math.min(this.width - wide, x + 14 + wide > this.width ? x - wide - 14 : x + 14))}px`;
  }
}

function grouped(points, series) {
  const size = Math.ceil(points.length / MOST_BARS);
  if (size === 1) return points;
  const made = [];
  for (let start = 0; start < points.length; start += size) {
    const some = points.slice(start, start + size);
    const sum = { age: some.reduce((total, one) => total + one.age, 0) / some.length };
    for (const one of series) sum[one.key] = some.reduce((total, point) => total + (point[one.key] || 0), 0);
    made.push(sum);
  }
  return made;
}

// From 0 to `top` or a little more in round steps; `whole` for what is counted.
export function niceTicks(top, whole) {
  const raw = whole ? Math.max(1, top / 3) : top / 3;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = (whole && power === 1 ? [1, 2, 5, 10] : [1, 2, 2.5, 5, 10]).map((one) => one * power).find((one) => one >= raw * 0.999);
  const ticks = [];
  for (let index = 0; (index - 1) * step < top * 0.999; index += 1) ticks.push(Number((index * step).toPrecision(6)));
  return ticks;
}

function timeTicks(span, width) {
  const minutes = span / 60;
  const unit = minutes <= 1 ? 15 : minutes <= 5 ? 60 : width < 420 ? 300 : 180;
  const ticks = [[0, "now", "end"]];
  const each = (width - LEFT - RIGHT) / span; // pixels a second
  for (let age = unit; age <= span; age += unit) {
    if (age < span && ((span - age) * each < 84 || age * each < 60 || unit * each < 52 && (age / unit) % 2)) continue;
    const text = unit < 60 ? `−${age} s` : `−${age / 60} min`;
    ticks.push([age, text, age === span ? "start" : "middle"]);
  }
  return ticks;
}

function agoText(age) {
  if (age < 60) return `${Math.round(age)} s ago`;
  const whole = Math.round(age);
  return `${Math.floor(whole / 60)} min ${whole % 60} s ago`;
}

export function legend(series) {
  return h("ul", { class: "legend" }, series.map((one) => h("li", { title: one.means }, h("i", { class: `dot t-${one.tone}` }), one.name)));
}

// A line of a few pixels' height, for a table or card. Values may be null.
export function spark(values, tone, most) {
  const width = 120;
  const height = 28;
  const top = most || Math.max(1e-9, ...values.map((one) => one || 0));
  let path = "";
  let pen = false;
  values.forEach((value, index) => {
    if (value === null) {
      pen = false;
      return;
    }
    const x = values.length > 1 ? (index / (values.length - 1)) * width : width;
    path += `${pen ? "L" : "M"}${x.toFixed(1)} ${(2 + (1 - value / top) * (height - 4)).toFixed(1)} `;
    pen = true;
  });
  return s("svg", { class: "spark", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" }, s("path", { class: `line t-${tone}`, d: path || "M 0 0", "vector-effect": "non-scaling-stroke" }));
}
