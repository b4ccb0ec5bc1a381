// A request's phases as a bar: what they took, and below what was predicted of them, on one scale.

import { h } from "./dom.js";
import { seconds } from "./format.js";
import { PHASES } from "./words.js";

export function phaseBars(entry) {
  const took = entry.phases_s;
  const said = entry.predicted_s;
  const known = said.some((one) => one !== null);
  const whole = Math.max(total(took), known ? total(said) : 0, 1e-9);
  const marks = [];
  if (entry.ttft_slo_s !== null && entry.ttft_slo_s < whole) {
    const mark = h("span", { class: "slo-mark", title: `TTFT SLO ${seconds(entry.ttft_slo_s)}` });
    mark.style.left = `${(entry.ttft_slo_s / whole) * 100}%`;
    marks.push(mark);
  }
  const words = PHASES.map((phase, index) => `${phase.name} ${seconds(took[index])}`).join(", ");
  return h("div", { class: "bars", role: "img", "aria-label": words }, strip(took, whole, "took"), known ? strip(said, whole, "said") : null, marks);
}

function strip(values, whole, kind) {
  const box = h("div", { class: `strip ${kind}` });
  PHASES.forEach((phase, index) => {
    const value = values[index] || 0;
    if (value / whole < 0.002) return;
    const piece = h("span", { class: `t-${phase.tone}`, title: `${phase.name} ${seconds(value)}${kind === "said" ? " predicted" : ""}` });
    piece.style.width = `${(value / whole) * 100}%`;
    box.append(piece);
  });
  return box;
}

function total(values) {
  return values.reduce((sum, one) => sum + (one || 0), 0);
}

export function phaseTable(entry) {
  const rows = PHASES.map((phase, index) => {
    const took = entry.phases_s[index];
    const said = entry.predicted_s[index];
    const more = said === null ? null : took - said;
    return h(
      "tr", { class: entry.blame === phase.key ? "blamed" : null },
      h("th", { scope: "row" }, h("i", { class: `dot t-${phase.tone}` }), phase.name, entry.blame === phase.key ? h("span", { class: "flag" }, " to blame") : null),
      h("td", null, seconds(took)), h("td", null, seconds(said)),
      h("td", null, more === null ? "–" : `${more < 0 ? "−" : "+"}${seconds(Math.abs(more))}`),
    );
  });
  return h("table", { class: "phases" }, h("thead", null, h("tr", null, ["Phase", "Took", "Predicted", "Difference"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", null, rows));
}
