// The last requests that missed their SLO, each with its timeline; one opens to its details.

import { phaseBars, phaseTable } from "./bars.js";
import { byId, h, keyed, setText } from "./dom.js";
import { bytes, clockTime, plain, seconds } from "./format.js";
import { legend } from "./chart.js";
import { PHASES, blameName, blameTone } from "./words.js";

const SHOWN = matchMedia("(max-width: 760px)").matches ? 6 : 8;

export class Misses {
  constructor(replay) {
    this.replay = replay;
    this.held = null; // while one is open the list stands still
    this.list = h("ul", { class: "misses" });
    this.empty = h("div", { class: "empty" });
    this.more = h("button", { type: "button", class: "quietbutton", hidden: true, onclick: () => this.release() });
    const hint = h("p", { class: "hint" }, "Upper bar: what each phase took. Thin bar: what was predicted when the request was placed. Dashed line: its TTFT SLO.");
    byId("misses").append(h("div", { class: "head" }, h("h3", null, "Recent misses"), hint), legend(PHASES), this.more, this.list, this.empty);
  }

  draw(store) {
    this.latest = store.state.misses.slice(0, SHOWN);
    if (this.held === null) this.show(this.latest);
    const fresh = this.held === null ? 0 : this.latest.filter((one) => one.n > this.held).length;
    this.more.hidden = fresh === 0;
    setText(this.more, `${fresh === SHOWN ? `${SHOWN} or more` : fresh} newer: close the details and show them`);
    const some = this.latest.length > 0;
    this.empty.hidden = some;
    if (!some) this.empty.replaceChildren(...why(store.state));
  }

  show(entries) {
    keyed(this.list, entries, (one) => one.n, (one) => this.item(one));
  }

  release() {
    this.held = null;
    for (const button of this.list.querySelectorAll("[aria-expanded=true]")) button.click();
    this.show(this.latest);
  }

  item(entry) {
    const details = h("div", { class: "details", hidden: true, id: `miss-${entry.n}` });
    const toggle = () => {
      const open = details.hidden;
      details.hidden = !open;
      button.setAttribute("aria-expanded", String(open));
      if (open && !details.firstChild) details.append(...this.details(entry));
      const any = this.list.querySelector("[aria-expanded=true]");
      this.held = any ? Math.max(this.held || 0, ...this.latest.map((one) => one.n)) : null;
    };
    const button = h(
      "button", { type: "button", class: "miss", "aria-expanded": "false", "aria-controls": `miss-${entry.n}`, onclick: toggle },
      h("span", { class: "when" }, clockTime(entry.received_unix_s)),
      h("span", { class: "chip" }, h("i", { class: `dot t-${blameTone(entry.blame)}` }), blameName(entry.blame)),
      h("span", { class: "rid" }, entry.id),
      phaseBars(entry),
      h("span", { class: "missed" }, verdicts(entry)),
      h("span", { class: "arrow", "aria-hidden": "true" }),
    );
    return h("li", null, button, details);
  }

  details(entry) {
    const facts = [
      ["Request", entry.id], ["Class", entry.class], ["Outcome", entry.outcome + (entry.status ? ` (${entry.status})` : entry.finish ? ` (${entry.finish})` : "")],
      ["TTFT", seconds(entry.ttft_s) + limit(entry.ttft_slo_s)], ["TPOT", seconds(entry.tpot_s) + limit(entry.tpot_slo_s)],
      ["Tokens", `${plain(entry.prompt_tokens)} in (${plain(entry.cached_tokens)} cached), ${plain(entry.completion_tokens)} out`],
      ["Workers", workers(entry)], ["Attempts", plain(entry.attempts)], ["Tenant", entry.tenant],
    ];
    if (entry.transfer) facts.push(["KV moved", `${bytes(entry.transfer.bytes)} in ${seconds(entry.transfer.seconds)}${entry.transfer.transport ? ` over ${entry.transfer.transport}` : ""}`]);
    if (entry.error) facts.push(["Said", entry.error]);
    const made = [h("div", { class: "split" }, phaseTable(entry), h("dl", { class: "detail" }, facts.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value)))))];
    if (entry.ttft_s !== null) made.push(h("button", { type: "button", class: "quietbutton", onclick: () => this.replay(entry) }, "Draw its walk"));
    return made;
  }
}

function workers(entry) {
  if (!entry.decode_worker) return "none";
  return entry.prefill_worker === entry.decode_worker || !entry.prefill_worker ? entry.decode_worker : `${entry.prefill_worker} → ${entry.decode_worker}`;
}

function limit(slo) {
  return slo === null ? "" : ` (SLO ${seconds(slo)})`;
}

function verdicts(entry) {
  if (entry.outcome !== "finished") return h("b", null, { rejected: "rejected", deadline: "past deadline", failed: "failed" }[entry.outcome] || entry.outcome);
  const parts = [];
  if (!entry.met_ttft) parts.push(h("span", null, "TTFT ", h("b", null, seconds(entry.ttft_s)), h("span", { class: "dim" }, ` / ${seconds(entry.ttft_slo_s)}`)));
  if (!entry.met_tpot) parts.push(h("span", null, "TPOT ", h("b", null, seconds(entry.tpot_s)), h("span", { class: "dim" }, ` / ${seconds(entry.tpot_slo_s)}`)));
  return parts;
}

function why(state) {
  if (!state.cluster.has_slo) return [h("p", null, h("strong", null, "Nothing can be missed yet."), " No SLO is set, so only requests that fail, are rejected or bring thresholds of their own would stand here.")];
  return [h("p", null, h("strong", null, "No misses."), " Every request since the server started met its SLO; the first that does not will stand here with its timeline.")];
}
