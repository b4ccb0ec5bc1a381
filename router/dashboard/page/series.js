// The four charts: requests, blame, TTFT and TPOT.

import { Chart, legend } from "./chart.js";
import { byId, h, setText } from "./dom.js";
import { percent, plain, seconds } from "./format.js";
import { BLAMES, OUTCOMES } from "./words.js";

const MOST_LINES = 3; // SLOs that can be read in one chart

const PERCENTILES = [
  { name: "p50", tone: "p50", width: 2.5 },
  { name: "p95", tone: "p95", width: 2, dash: "7 3" },
  { name: "p99", tone: "p99", width: 1.8, dash: "2 3" },
];

export class Requests {
  constructor() {
    const series = [
      { key: "good", name: "Good", tone: "good" },
      { key: "missed", name: "Missed an SLO, failed or rejected", tone: "miss" },
      { key: "left", name: "Not judged: the client left", tone: "other" },
    ];
    this.chart = new Chart({ label: "Requests over time: good, missed, not judged. Arrow keys read values.", height: 190, format: plain, kind: "bars", series, empty: "No request ended in this time" });
    this.outcomes = h("ul", { class: "facts" });
    byId("requests").append(head("Requests", "by when they ended"), legend(series), this.chart.node, this.outcomes);
  }

  draw(store) {
    const points = store.points(store.group);
    for (const point of points) {
      point.missed = point.judged - point.good;
      point.left = point.requests - point.judged;
    }
    this.chart.update(points, store.spanSeconds);
    const { outcomes, requests } = store.sumsOfGroup;
    this.outcomes.replaceChildren(...OUTCOMES.filter((one) => outcomes[one.key] || one.key === "finished").map((one) => h("li", null, h("i", { class: `dot t-${one.tone}` }), `${one.name} `, h("b", null, plain(outcomes[one.key])), requests && one.key !== "finished" ? h("span", { class: "dim" }, ` ${percent(outcomes[one.key] / requests)}`) : null)));
  }
}

export class Blame {
  constructor() {
    this.chart = new Chart({ label: "Missed requests over time, by the phase to blame. Arrow keys read values.", height: 190, format: plain, kind: "bars", series: BLAMES, empty: "No request missed its SLO in this time" });
    this.totals = h("ol", { class: "totals" });
    byId("blame").append(head("Blame", "the phase that would have saved a missed request, had it taken what was predicted"), this.chart.node, this.totals);
  }

  draw(store) {
    this.chart.update(store.points(store.group), store.spanSeconds);
    const { blame } = store.sumsOfGroup;
    const found = BLAMES.map((one) => ({ ...one, count: blame[one.key] })).filter((one) => one.count > 0);
    const total = found.reduce((sum, one) => sum + one.count, 0);
    const rows = found.sort((a, b) => b.count - a.count).map((one) => {
      const fill = h("span", { class: `fill t-${one.tone}` });
      fill.style.width = `${(one.count / found[0].count) * 100}%`;
      return h("li", { title: one.means }, h("span", { class: "label" }, h("i", { class: `dot t-${one.tone}` }), one.name), h("span", { class: "track", "aria-hidden": "true" }, fill), h("b", { "data-blame": one.key }, plain(one.count)), h("span", { class: "dim" }, percent(one.count / total)));
    });
    this.totals.replaceChildren(...(rows.length ? rows : [h("li", { class: "quiet" }, "Nothing to blame in this time.")]));
  }
}

export class Latency {
  // which: "ttft" or "tpot"
  constructor(which, title, hint) {
    this.which = which;
    const series = PERCENTILES.map((one) => ({ ...one, key: `${which}_${one.name}` }));
    this.chart = new Chart({ label: `${title} percentiles over time. Arrow keys read values.`, height: 190, format: seconds, kind: "lines", series, empty: "No request ended in this time" });
    this.figures = h("dl", { class: "figures" });
    this.slo = h("p", { class: "slo-note" });
    byId(which).append(head(title, hint), this.figures, this.chart.node, this.slo);
  }

  draw(store) {
    const sums = store.sumsOfGroup[`${this.which}_s`];
    const slos = this.slos(store);
    const drawn = slos.length <= MOST_LINES ? slos : [];
    const lowest = slos.length === 1 ? slos[0].value : null;
    const figures = PERCENTILES.map((one) => figure(one, sums[one.name], lowest));
    if (this.which === "tpot") figures.push(...gapFigures(store.state.activity.itl_s));
    this.figures.replaceChildren(...figures);
    this.chart.update(store.points(store.group), store.spanSeconds, drawn);
    setText(this.slo, slos.length ? `${slos.length} classes have a threshold for it; choose one above to see its line.` : "No threshold is set for it.");
    this.slo.hidden = drawn.length > 0;
  }

  slos(store) {
    const { classes } = store.state;
    const shown = store.group === 0 ? classes : [classes[store.group - 1]];
    const name = this.which.toUpperCase();
    return shown.filter((one) => one[`${this.which}_s`] !== null).map((one) => ({ value: one[`${this.which}_s`], text: `${name} SLO ${seconds(one[`${this.which}_s`])}${classes.length > 1 ? ` (${one.name})` : ""}` }));
  }
}

function figure(one, value, slo) {
  const over = slo !== null && value !== null && value > slo;
  return h("div", { class: over ? "over" : null }, h("dt", null, h("i", { class: `dash k-${one.tone}` }), one.name), h("dd", { "data-figure": one.name }, seconds(value), over ? h("span", { class: "flag" }, " over SLO") : null));
}

function gapFigures(gaps) {
  return [h("div", { class: "apart", title: "each gap between two tokens, over the last minute" }, h("dt", null, "ITL p50 · p99"), h("dd", null, `${seconds(gaps.p50)} · ${seconds(gaps.p99)}`))];
}

function head(title, hint) {
  return h("div", { class: "head" }, h("h3", null, title), h("p", { class: "hint" }, hint));
}
