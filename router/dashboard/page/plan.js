// What was asked for against what is there, and what happened to the workers.

import { byId, h } from "./dom.js";
import { clockTime, percent, plain, seconds } from "./format.js";

export class Plan {
  draw(store) {
    const { cluster, workers } = store.state;
    const { all } = store.sums;
    const planned = cluster.planned;
    const title = h("div", { class: "head" }, h("h3", null, "Plan and actual"), h("p", { class: "hint" }, planned && planned.plan ? planned.plan : "what was asked for, what is there"));
    const made = [title];
    if (planned) {
      const up = (role) => workers.filter((one) => one.role === role && one.up).length;
      const rows = [
        row("Prefill workers", plain(planned.prefill), plain(up("prefill")), up("prefill") < planned.prefill),
        row("Decode workers", plain(planned.decode), plain(up("decode")), up("decode") < planned.decode),
      ];
      if (planned.goodput_rps !== null) {
        const low = all.attainment !== null && planned.attainment !== null && all.attainment < planned.attainment;
        rows.push(row("Goodput", `${plain(planned.goodput_rps)} req/s`, `${plain(all.goodput_rps)} req/s`, false));
        for (const which of ["ttft", "tpot"]) {
          const said = planned[`${which}_p90_s`];
          if (said !== null) rows.push(row(`${which.toUpperCase()} p90`, seconds(said), seconds(all[`${which}_s`].p90), false));
        }
        if (planned.attainment !== null) rows.push(row("Attainment", `≥ ${percent(planned.attainment)}`, percent(all.attainment), low));
      }
      made.push(h("table", { class: "plan" }, h("thead", null, h("tr", null, ["", planned.plan ? "Planned" : "Configured", "Actual"].map((name) => h("th", { scope: "col" }, name)))), h("tbody", null, rows)));
      if (planned.goodput_rps !== null) made.push(h("p", { class: "hint" }, `Predicted goodput is the highest rate that the plan carries${planned.ttft_s === null ? "" : ` at TTFT ≤ ${seconds(planned.ttft_s)}`}${planned.tpot_s === null ? "" : `, TPOT ≤ ${seconds(planned.tpot_s)}`}; live goodput cannot be higher than what clients ask for.`));
    }
    if (!planned || !planned.plan) {
      made.push(h("div", { class: "empty" }, h("p", null, h("strong", null, "No plan."), " The cluster was started from flags. A searched plan says how many workers of each role meet the SLOs, and what goodput to expect:"), h("pre", null, "pdserve plan --model … --workload … --gpus … --slo-ttft 0.5 --slo-tpot 0.05 -o PLAN.json\npdserve serve MODEL --plan PLAN.json")));
    }
    byId("plan").replaceChildren(...made);
  }
}

function row(name, planned, actual, bad) {
  return h("tr", null, h("th", { scope: "row" }, name), h("td", null, planned), h("td", { class: bad ? "bad" : null }, actual, bad ? h("span", { class: "flag" }, " below") : null));
}

const SAID = {
  down: (one) => [h("b", null, one.worker), " was lost"],
  up: (one) => [h("b", null, one.worker), " is up again"],
  joined: (one) => [h("b", null, one.worker), ` joined the ${one.role} pool`],
  role: (one) => [h("b", null, one.worker), ` changed its role: ${one.was} → ${one.role}`],
};

export class Events {
  draw(store) {
    const { events } = store.state;
    const items = events.slice(0, 8).map((one) => h("li", { class: `e-${one.kind}` }, h("span", { class: "when" }, clockTime(one.unix_s)), h("span", null, SAID[one.kind](one))));
    byId("events").replaceChildren(
      h("div", { class: "head" }, h("h3", null, "Worker changes"), h("p", { class: "hint" }, "lost, back, joined, changed roles")),
      items.length ? h("ul", { class: "events" }, items) : h("p", { class: "empty" }, "Nothing has changed since the server started: every worker that began is where it was."),
    );
  }
}
