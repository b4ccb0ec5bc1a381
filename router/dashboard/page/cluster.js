// Pools, workers and the links between them.

import { byId, h, keyed, setText } from "./dom.js";
import { spark } from "./chart.js";
import { bytes, lasted, plain, seconds } from "./format.js";
import { BLOCK_STATES } from "./words.js";

const MOST = 48; // cards of one pool
const MOST_LINKS = 8;
const ENOUGH = 5; // transfers in a minute, to call a link slow
const ROLES = [
  { role: "prefill", name: "Prefill pool", means: "computes prompts and token 1" },
  { role: "decode", name: "Decode pool", means: "computes all later tokens" },
];

export class Cluster {
  constructor() {
    this.pools = ROLES.map((one) => {
      const count = h("span", { class: "count" });
      const cards = h("ul", { class: "cards" });
      const more = h("p", { class: "hint" });
      const node = h("div", { class: `pool r-${one.role}` }, h("h4", null, one.name, count), h("p", { class: "hint" }, one.means), cards, more);
      return { ...one, node, count, cards, more };
    });
    this.links = h("div", { class: "links" });
    const states = h("ul", { class: "legend" }, BLOCK_STATES.map((one) => h("li", null, h("i", { class: `dot t-${one.tone}` }), `KV ${one.name}`)));
    byId("cluster").append(h("div", { class: "head" }, h("h3", null, "Workers and links"), states), h("div", { class: "map" }, this.pools[0].node, this.links, this.pools[1].node));
  }

  draw(store) {
    const { workers, links } = store.state;
    for (const pool of this.pools) this.drawPool(pool, workers.filter((one) => one.role === pool.role), store);
    this.drawLinks(links, workers);
  }

  drawPool(pool, workers, store) {
    const up = workers.filter((one) => one.up).length;
    setText(pool.count, `${up} of ${workers.length} up`);
    pool.count.classList.toggle("bad", up < workers.length);
    const order = (one) => (one.up ? 1 : 0);
    const shown = [...workers].sort((a, b) => order(a) - order(b) || a.id.localeCompare(b.id, "en", { numeric: true })).slice(0, MOST);
    keyed(pool.cards, shown, (one) => one.id, card, (node, one) => drawCard(node, one, store.loads.get(one.id) || []));
    pool.cards.classList.toggle("many", shown.length > 6);
    const hidden = workers.length - shown.length;
    setText(pool.more, workers.length === 0 ? nobody(pool.role) : hidden > 0 ? `and ${hidden} more, all up` : "");
  }

  drawLinks(links, workers) {
    const top = Math.max(1, ...links.map((one) => one.bytes_per_s || 0));
    const speeds = links.filter((one) => one.recent_transfers >= ENOUGH).map((one) => one.bytes_per_s).sort((a, b) => a - b);
    const usual = speeds.length ? speeds[Math.floor(speeds.length / 2)] : 0;
    const head = [h("h4", null, "Links", h("span", { class: "count" }, "P → D")), h("p", { class: "hint" }, "bandwidth while blocks moved, over the last minute")];
    if (!links.length) {
      const alone = !workers.some((one) => one.role === "prefill");
      this.links.replaceChildren(...head, h("p", { class: "empty" }, alone ? "No prefill worker, so no KV moves: decode workers compute prompts themselves." : "No KV has moved yet. A link appears with its first transfer."));
      return;
    }
    const rows = [...links].sort((a, b) => isSlow(b, usual) - isSlow(a, usual) || b.recent_transfers - a.recent_transfers || (a.src + a.dst).localeCompare(b.src + b.dst)).slice(0, MOST_LINKS).map((one) => linkRow(one, top, usual));
    this.links.replaceChildren(...head, h("ul", null, rows), links.length > MOST_LINKS ? h("p", { class: "hint" }, `and ${links.length - MOST_LINKS} more; slow and busy ones are shown`) : "");
  }
}

function isSlow(link, usual) {
  return link.recent_transfers >= ENOUGH && link.bytes_per_s < usual / 2;
}

function linkRow(link, top, usual) {
  const fill = h("span", { class: "fill t-transfer" });
  fill.style.width = `${((link.bytes_per_s || 0) / top) * 100}%`;
  const slow = isSlow(link, usual);
  return h(
    "li", { class: slow ? "slow" : null },
    h("div", { class: "between" }, h("b", null, `${link.src} → ${link.dst}`), link.transport ? h("span", { class: "chip" }, link.transport) : null, slow ? h("span", { class: "chip warn" }, "slow") : null),
    h("div", { class: "speed" }, h("span", { class: "track", "aria-hidden": "true" }, fill), h("b", null, link.bytes_per_s === null ? "–" : `${bytes(link.bytes_per_s)}/s`)),
    h("div", { class: "dim" }, link.recent_transfers ? `${plain(link.recent_transfers)} × ${bytes(link.recent_bytes / link.recent_transfers)}, ${seconds(link.recent_mean_s)} each` : "quiet in the last minute"),
  );
}

function card(worker) {
  const parts = {
    state: h("span", { class: "state" }),
    device: h("span", { class: "dim" }),
    load: h("span", { class: "load" }),
    line: h("span", { class: "sparkbox", "aria-hidden": "true" }),
    kv: h("div", { class: "kv", role: "img" }),
    kvText: h("span", { class: "dim" }),
    step: h("span", { class: "dim" }),
    gone: h("p", { class: "gone" }),
  };
  const node = h(
    "li", { class: "card", "data-worker": worker.id },
    h("div", { class: "between" }, h("b", { class: "wid" }, worker.id), parts.state),
    h("div", { class: "live" }, h("div", { class: "between" }, parts.load, parts.line), parts.kv, h("div", { class: "between" }, parts.kvText, parts.step)),
    parts.gone,
  );
  node.parts = parts;
  return node;
}

function drawCard(node, worker, loads) {
  const { state, load, line, kv, kvText, step, gone } = node.parts;
  const quiet = worker.up && worker.silent_s !== null && worker.silent_s > 2.5;
  node.classList.toggle("down", !worker.up);
  node.classList.toggle("quiet", quiet);
  setText(state, worker.up ? (quiet ? `silent ${Math.round(worker.silent_s)} s` : worker.device) : "DOWN");
  setText(gone, worker.up ? (worker.running === undefined ? "Up; it has not reported yet." : "") : `Lost ${worker.since_s === null ? "" : `${lasted(worker.since_s)} ago`}. New requests go elsewhere; it is taken back when it answers again.`);
  gone.hidden = worker.up && worker.running !== undefined;
  node.querySelector(".live").hidden = !gone.hidden;
  if (!gone.hidden) return;
  load.replaceChildren(h("b", null, plain(worker.running)), " running", worker.waiting ? h("span", null, ", ", h("b", null, plain(worker.waiting)), " waiting") : h("span", { class: "dim" }, ", 0 waiting"));
  line.replaceChildren(spark(loads.length > 1 ? loads : [0, 0], worker.role === "prefill" ? "prefill" : "decode", Math.max(1, ...loads)));
  const blocks = worker.blocks.reduce((sum, one) => sum + one, 0) || 1;
  const held = 1 - (worker.blocks[4] + worker.blocks[1]) / blocks;
  kv.replaceChildren(...BLOCK_STATES.map((one, index) => {
    const piece = h("span", { class: `t-${one.tone}` });
    piece.style.width = `${(worker.blocks[index] / blocks) * 100}%`;
    return piece;
  }));
  kv.setAttribute("aria-label", BLOCK_STATES.map((one, index) => `${worker.blocks[index]} blocks ${one.name}`).join(", "));
  kv.title = BLOCK_STATES.map((one, index) => `${one.name} ${worker.blocks[index]}`).join(", ") + " blocks";
  setText(kvText, `KV ${Math.round(held * 100)} % of ${bytes(worker.kv_bytes)}${worker.leaked_blocks ? ` · ${worker.leaked_blocks} LEAKED` : ""}`);
  setText(step, worker.step_s === null ? "idle" : `step ${seconds(worker.step_s)} × ${plain(worker.batch)}`);
  step.title = "mean step time, and sequences in a step, over the last 10 s";
}

function nobody(role) {
  return role === "prefill" ? "None: the decode workers compute prompts too (a colocated server)." : "None: nothing can be served.";
}
