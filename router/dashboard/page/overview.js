// The first line of numbers, and one row for each SLO class.

import { byId, h, setText } from "./dom.js";
import { spark } from "./chart.js";
import { percent, plain, seconds } from "./format.js";

const TILES = [
  { key: "attainment", name: "SLO attainment", big: true },
  { key: "goodput", name: "Goodput", unit: "req/s" },
  { key: "offered", name: "Requests ended", unit: "req/s" },
  { key: "tokens", name: "Output tokens", unit: "tok/s" },
  { key: "running", name: "Running now" },
  { key: "misses", name: "Missed" },
];

export class Overview {
  constructor() {
    this.tiles = new Map();
    for (const tile of TILES) {
      const value = h("span", { class: "value", id: `tile-${tile.key}` }, "–");
      const note = h("span", { class: "note" });
      byId("tiles").append(h("div", { class: tile.big ? "tile big" : "tile" }, h("span", { class: "name" }, tile.name), h("span", { class: "figure" }, value, tile.unit && h("span", { class: "unit" }, tile.unit)), note));
      this.tiles.set(tile.key, { value, note });
    }
  }

  draw(store) {
    this.drawTiles(store);
    this.drawClasses(store);
  }

  put(key, value, note) {
    const tile = this.tiles.get(key);
    setText(tile.value, value);
    setText(tile.note, note);
  }

  drawTiles(store) {
    const { all } = store.sums;
    const { activity, spans, workers } = store.state;
    const now = spans["15"].all;
    const misses = all.judged - all.good;
    const up = workers.filter((one) => one.up).length;
    this.put("attainment", percent(all.attainment), store.state.cluster.has_slo ? now.judged ? `${percent(now.attainment)} in the last 15 s` : "no request in the last 15 s" : "share served: no SLO is set");
    this.put("goodput", plain(all.goodput_rps), up ? `${plain(all.goodput_rps / up)} per worker` : "no worker is up");
    this.put("offered", plain(all.requests_per_s), `${plain(now.requests_per_s)} in the last 15 s`);
    this.put("tokens", activity.tokens_per_s === null ? "–" : plain(Math.round(activity.tokens_per_s)), "in the last 10 s");
    this.put("running", plain(activity.running), activity.running === 1 ? "request" : "requests");
    this.put("misses", plain(misses), `of ${plain(all.judged)} judged`);
  }

  drawClasses(store) {
    const { classes, cluster } = store.state;
    const box = byId("classes");
    const head = h("div", { class: "head" }, h("h3", null, "SLO classes"), h("p", { class: "hint" }, "A request is good when it met every threshold it asked for. Goodput is good requests per second."));
    if (!cluster.has_slo) {
      box.replaceChildren(head, noSlo());
      return;
    }
    const rows = classes.map((one, index) => row(one, store.sums.classes[index], store, classes.length > 1 ? index + 1 : 0));
    const names = ["Class", "Threshold", "Attainment", "", "Goodput", "TTFT met", "TPOT met", "Over the time shown"];
    box.replaceChildren(head, h("div", { class: "scroll" }, h("table", { class: "classes" }, h("thead", null, h("tr", null, names.map((name) => h("th", { scope: "col" }, name)))), h("tbody", null, rows))));
  }
}

function row(slo, sums, store, group) {
  const shares = bundled(store.points(group));
  const meter = h("span", { class: sums.attainment === null ? "meter none" : "meter" }, h("span", { class: "fill" }));
  meter.firstChild.style.width = `${(sums.attainment || 0) * 100}%`;
  return h(
    "tr", null,
    h("th", { scope: "row" }, slo.name),
    h("td", { "data-name": "Threshold" }, thresholds(slo)),
    h("td", { "data-name": "Attainment", class: "number strong" }, percent(sums.attainment)),
    h("td", { class: "meterbox", "aria-hidden": "true" }, meter),
    h("td", { "data-name": "Goodput", class: "number" }, `${plain(sums.goodput_rps)} `, h("span", { class: "dim" }, `of ${plain(sums.requests_per_s)} req/s`)),
    h("td", { "data-name": "TTFT met", class: "number" }, slo.ttft_s === null ? "no limit" : percent(sums.met_ttft)),
    h("td", { "data-name": "TPOT met", class: "number" }, slo.tpot_s === null ? "no limit" : percent(sums.met_tpot)),
    h("td", { class: "sparkbox" }, spark(shares, "good", 1)),
  );
}

// At most 60 shares of good requests, oldest first.
function bundled(points) {
  const size = Math.ceil(points.length / 60);
  const shares = [];
  for (let start = 0; start < points.length; start += size) {
    const some = points.slice(start, start + size);
    const judged = some.reduce((sum, one) => sum + one.judged, 0);
    shares.push(judged ? some.reduce((sum, one) => sum + one.good, 0) / judged : null);
  }
  return shares;
}

function thresholds(slo) {
  const parts = [];
  if (slo.ttft_s !== null) parts.push(`TTFT ≤ ${seconds(slo.ttft_s)}`);
  if (slo.tpot_s !== null) parts.push(`TPOT ≤ ${seconds(slo.tpot_s)}`);
  return parts.join(" · ") || "none: served is good";
}

function noSlo() {
  return h(
    "div", { class: "empty" },
    h("p", null, h("strong", null, "No SLO is set"), ", so every request that is served counts as good, unless it brings thresholds of its own. Latencies are shown below all the same."),
    h("p", null, "Give the server thresholds, in seconds, to see goodput:"),
    h("pre", null, "pdserve serve MODEL --slo-ttft-s 0.5 --slo-tpot-s 0.05"),
    h("p", null, "or named classes in the file of ", h("code", null, "--config"), ":"),
    h("pre", null, "slo-classes:\n  chat:  {ttft-s: 0.5, tpot-s: 0.05}\n  batch: {ttft-s: 10}"),
  );
}
