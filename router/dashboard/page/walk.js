// One request's way through the cluster, drawn with its own times and played again.

import { legend } from "./chart.js";
import { byId, h, s, setText } from "./dom.js";
import { bytes, clockTime, plain, seconds } from "./format.js";
import { PHASES } from "./words.js";

const PLAY_S = 7;
const LANES = { client: 44, router: 92, prefill: 152, decode: 236 };
const HEIGHT = 292;
const BAR = 20;

export class Walk {
  constructor() {
    this.entry = null;
    this.pinned = false;
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.at = 1; // share of the drawing's width that has been played
    this.svg = s("svg", { class: "walk", role: "img" });
    this.box = h("div", { class: "walkbox" }, this.svg);
    this.pick = h("select", { "aria-label": "Request drawn", onchange: () => this.show(this.recent.find((one) => String(one.n) === this.pick.value), true) });
    this.play = h("button", { type: "button", onclick: () => this.toggle() }, "Play");
    this.slider = h("input", { type: "range", min: "0", max: "1000", value: "1000", "aria-label": "Moment of the request", oninput: () => this.scrub() });
    this.caption = h("p", { class: "caption" });
    this.facts = h("ul", { class: "facts" });
    this.empty = h("div", { class: "empty" }, h("p", null, h("strong", null, "No request has been served yet."), " The first one will be drawn here: from the client through the router to prefill, the move of its KV, and decode."), h("pre", null, "curl " + location.origin + "/v1/completions -H 'content-type: application/json' \\\n  -d '{\"prompt\": \"Once upon a time\", \"max_tokens\": 64}'"));
    this.tools = h("div", { class: "tools" }, this.play, this.slider, h("label", null, h("span", { class: "sr" }, "Request"), this.pick));
    this.body = h("div", { class: "walkbody" }, this.tools, this.box, this.caption, this.facts);
    byId("walk").append(h("div", { class: "head" }, h("h3", null, "One request's walk"), h("p", { class: "hint" }, "real times of a real request; short phases are drawn wider than they were")), legend(PHASES), this.body, this.empty);
    new ResizeObserver(() => this.paint()).observe(this.box);
  }

  draw(store) {
    this.recent = store.state.recent;
    const some = this.recent.length > 0 || this.entry !== null;
    this.empty.hidden = some;
    this.body.hidden = !some;
    if (!some) return;
    // A request that has been played gives way to a newer one, unless somebody chose or holds it.
    if (this.entry === null || (!this.pinned && !this.playing && this.at === 1 && Date.now() - this.since > 9000 && !this.box.parentElement.matches(":focus-within"))) {
      const best = this.recent.find((one) => one.transfer && one.completion_tokens > 1) || this.recent[0];
      if (best && (!this.entry || best.n !== this.entry.n)) this.show(best, false);
    }
    if (document.activeElement !== this.pick) this.list();
  }

  list() {
    const shown = this.recent.some((one) => one.n === this.entry.n) ? this.recent : [this.entry, ...this.recent];
    this.pick.replaceChildren(...shown.map((one) => h("option", { value: one.n, selected: one.n === this.entry.n }, `${clockTime(one.received_unix_s)}  ${one.id.slice(0, 24)}  ${plain(one.prompt_tokens)} → ${plain(one.completion_tokens)} tokens`)));
  }

  // From outside: a miss that somebody wants to see.
  show(entry, pinned = true) {
    if (!entry) return;
    this.entry = entry;
    this.pinned = pinned;
    this.since = Date.now();
    this.empty.hidden = true;
    this.body.hidden = false;
    this.list();
    this.paint();
    this.drawFacts();
    if (pinned && document.activeElement !== this.pick) byId("walk").scrollIntoView({ behavior: this.still.matches ? "auto" : "smooth", block: "nearest" });
    if (this.still.matches) this.seek(1);
    else this.start(0);
  }

  drawFacts() {
    const one = this.entry;
    const facts = PHASES.map((phase, index) => h("li", null, h("i", { class: `dot t-${phase.tone}` }), `${phase.name} `, h("b", null, seconds(one.phases_s[index])), one.predicted_s[index] === null ? null : h("span", { class: "dim" }, ` predicted ${seconds(one.predicted_s[index])}`)));
    this.facts.replaceChildren(...facts, h("li", null, "TTFT ", h("b", null, seconds(one.ttft_s))), h("li", null, "TPOT ", h("b", null, seconds(one.tpot_s))), one.transfer ? h("li", null, "KV ", h("b", null, bytes(one.transfer.bytes)), one.transfer.transport ? ` over ${one.transfer.transport}` : "") : null);
  }

  // ---- playing ----

  toggle() {
    if (this.playing) this.halt();
    else this.start(this.at >= 1 ? 0 : this.at);
  }

  start(from) {
    this.halt();
    this.playing = true;
    setText(this.play, "Pause");
    const began = performance.now() - from * PLAY_S * 1000;
    const frame = (now) => {
      if (!this.playing) return;
      const at = Math.min(1, Math.max(0, now - began) / (PLAY_S * 1000));
      this.seek(at);
      if (at < 1) requestAnimationFrame(frame);
      else this.halt();
    };
    requestAnimationFrame(frame);
  }

  halt() {
    if (this.playing) this.since = Date.now();
    this.playing = false;
    setText(this.play, this.at >= 1 ? "Play again" : "Play");
  }

  scrub() {
    this.pinned = true;
    this.halt();
    this.seek(Number(this.slider.value) / 1000);
  }

  seek(at) {
    this.at = at;
    this.slider.value = String(Math.round(at * 1000));
    if (!this.plan) return;
    const x = this.plan.left + at * (this.plan.right - this.plan.left);
    this.clip.setAttribute("width", x);
    this.head.setAttribute("transform", `translate(${x.toFixed(1)} 0)`);
    this.head.setAttribute("visibility", at >= 1 ? "hidden" : "visible");
    const time = this.plan.timeAt(x);
    setText(this.caption, at >= 1 ? ended(this.entry) : `${seconds(time)}: ${momentOf(this.entry, time)}`);
  }

  // ---- drawing ----

  paint() {
    const width = Math.floor(this.box.clientWidth);
    if (!width || !this.entry) return;
    const plan = (this.plan = new Scale(this.entry, width));
    const scene = sceneOf(this.entry, plan);
    this.clip = s("rect", { x: 0, y: 0, width, height: HEIGHT });
    this.head = s("g", { class: "playhead" }, s("line", { x1: 0, x2: 0, y1: 18, y2: HEIGHT - 24 }), s("circle", { cx: 0, cy: 18, r: 4 }));
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.setAttribute("height", HEIGHT);
    this.svg.setAttribute("aria-label", `${momentsOf(this.entry)} ${ended(this.entry)}`);
    const ghost = scene.cloneNode(true);
    ghost.setAttribute("class", "ghost");
    this.svg.replaceChildren(s("defs", null, s("clipPath", { id: "walked" }, this.clip)), lanesOf(this.entry, plan), ghost, s("g", { "clip-path": "url(#walked)" }, scene), this.head);
    this.seek(this.at);
  }
}

// Offsets to pixels. Between two borders it is linear; short stretches get more room than they had time.
class Scale {
  constructor(entry, width) {
    this.width = width;
    this.small = width < 560;
    this.left = this.small ? 8 : 104;
    this.right = width - (this.small ? 10 : 16);
    const at = entry.at_s;
    const begun = at.committed !== null && entry.transfer ? Math.max(0, at.committed - entry.transfer.seconds) : null;
    const borders = [0, at.dispatched, at.prefill_started, begun, at.first_token, at.committed, at.decode_started, at.ended];
    this.times = [...new Set(borders.filter((one) => one !== null && one <= at.ended))].sort((a, b) => a - b);
    const lengths = this.times.slice(1).map((one, index) => one - this.times[index]);
    const weights = lengths.map((one) => Math.sqrt(one / (at.ended || 1)) + 0.05);
    const sum = weights.reduce((a, b) => a + b, 0) || 1;
    this.places = [this.left];
    for (const weight of weights) this.places.push(this.places[this.places.length - 1] + (weight / sum) * (this.right - this.left));
  }

  x(time) {
    for (let index = 1; index < this.times.length; index += 1) {
      if (time <= this.times[index]) return this.places[index - 1] + ((time - this.times[index - 1]) / (this.times[index] - this.times[index - 1])) * (this.places[index] - this.places[index - 1]);
    }
    return this.places[this.places.length - 1];
  }

  timeAt(x) {
    for (let index = 1; index < this.places.length; index += 1) {
      if (x <= this.places[index]) return this.times[index - 1] + ((x - this.places[index - 1]) / (this.places[index] - this.places[index - 1])) * (this.times[index] - this.times[index - 1]);
    }
    return this.times[this.times.length - 1];
  }
}

function isSplit(entry) {
  return Boolean(entry.prefill_worker) && entry.prefill_worker !== entry.decode_worker;
}

function lanesOf(entry, plan) {
  const split = isSplit(entry);
  const lanes = [["client", "Client"], ["router", plan.small ? `Router · ${plain(entry.prompt_tokens)} tokens in` : "Router"]];
  if (split) lanes.push(["prefill", entry.prefill_worker]);
  lanes.push(["decode", entry.decode_worker]);
  const group = s("g", { class: "lanes" });
  for (const [key, name] of lanes) {
    const y = LANES[key];
    const short = name.length > 15 && key !== "router" ? `${name.slice(0, 14)}…` : name;
    group.append(s("line", { x1: plan.left, x2: plan.right, y1: y, y2: y }));
    group.append(s("text", plan.small ? { x: plan.left + 12, y: y - (key === "prefill" || key === "decode" ? 15 : 6), class: "lane" } : { x: plan.left - 12, y: y + 4, "text-anchor": "end", class: "lane" }, short));
  }
  let last = -100;
  const ends = plan.times.map((time) => [time, plan.x(time)]);
  const final = ends[ends.length - 1];
  for (const [time, x] of ends) {
    group.append(s("line", { class: "moment", x1: x, x2: x, y1: 26, y2: HEIGHT - 22 }));
    const isLast = time === final[0];
    if (!isLast && (x - last < 54 || final[1] - x < 58)) continue;
    group.append(s("text", { class: "tick", x, y: HEIGHT - 6, "text-anchor": isLast ? "end" : time === 0 ? "start" : "middle" }, time === 0 ? "0" : seconds(time)));
    last = x + (time === 0 ? -30 : 0);
  }
  return group;
}

function sceneOf(entry, plan) {
  const at = entry.at_s;
  const split = isSplit(entry);
  const where = split ? LANES.prefill : LANES.decode;
  const x = (time) => plan.x(time);
  const parts = [arrow(x(0) + 1, LANES.client, LANES.router, "way"), plan.small ? null : text(x(0) + 8, LANES.client + 28, `${plain(entry.prompt_tokens)} tokens in`, plan)];
  const started = at.prefill_started === null ? at.ended : at.prefill_started;
  const told = at.dispatched === null ? 0 : Math.min(at.dispatched, started);
  if (told > 0) parts.push(bar(x(0), x(told), LANES.router, "queue"));
  if (at.dispatched !== null) parts.push(arrow(x(told) + 1, LANES.router, where - BAR / 2, "way"));
  parts.push(bar(x(told), x(started), where, "queue", "queue"));
  if (at.first_token !== null) {
    parts.push(bar(x(started), x(at.first_token), where, "prefill", "prefill"));
    parts.push(arrow(x(at.first_token), where - BAR / 2, LANES.client, "token"), s("circle", { class: "t-good", cx: x(at.first_token), cy: LANES.client, r: 5 }));
    parts.push(text(x(at.first_token), LANES.client - 14, `token 1 after ${seconds(entry.ttft_s)}`, plan));
  }
  if (split && at.committed !== null) parts.push(...moveOf(entry, x, plan));
  const decode = at.decode_started;
  if (split && decode !== null && at.committed !== null) parts.push(bar(x(at.committed), x(decode), LANES.decode, "wait", "wait"));
  if (decode !== null && at.ended > decode) {
    parts.push(...tokensOf(entry, x(decode), x(at.ended)), bar(x(decode), x(at.ended), LANES.decode, "decode", `decode ${plain(Math.max(0, entry.completion_tokens - 1))} tokens`));
  }
  if (entry.ttft_slo_s !== null && entry.ttft_slo_s <= at.ended) {
    const place = x(entry.ttft_slo_s);
    parts.push(s("line", { class: "slo", x1: place, x2: place, y1: LANES.client - 9, y2: LANES.client + 9 }), text(place + 5, LANES.client + 16, "TTFT SLO", plan, "slo-text"));
  }
  return s("g", null, parts);
}

// The KV on its way: it begins while the prompt is still being computed.
function moveOf(entry, x, plan) {
  const end = x(entry.at_s.committed);
  const begin = Math.min(entry.transfer ? x(Math.max(0, entry.at_s.committed - entry.transfer.seconds)) : x(entry.at_s.first_token), end - 10);
  const top = LANES.prefill + BAR / 2 + 3;
  const bottom = LANES.decode - BAR / 2 - 3;
  const lean = Math.min(26, (end - begin) * 0.4);
  const words = entry.transfer ? `KV ${bytes(entry.transfer.bytes)}` : "KV";
  return [
    holds(x(entry.at_s.first_token), end),
    s("path", { class: "move t-transfer", d: `M ${begin} ${top} L ${end - lean} ${top} L ${end} ${bottom} L ${begin + lean} ${bottom} Z` }),
    end - begin > words.length * 7 + 24 ? text((begin + end) / 2, (top + bottom) / 2 + 4, words, plan, "inside", "middle") : null,
  ];
}

// The prefill worker keeps the blocks until the other has them.
function holds(from, to) {
  if (to - from < 3) return null;
  const y = LANES.prefill - BAR / 2 + 1;
  return s("g", null, s("rect", { class: "holds", x: from + 1, y, width: to - from - 2, height: BAR - 2, rx: 3 }), to - from > 74 ? s("text", { class: "note", x: (from + to) / 2, y: y + 13, "text-anchor": "middle" }, "keeps KV") : null);
}

// Tokens 2 to the last, some of them, on their way up.
function tokensOf(entry, from, to) {
  const number = Math.max(1, Math.min(entry.completion_tokens - 1, Math.floor((to - from) / 9)));
  const made = [];
  for (let index = 1; index <= number; index += 1) {
    const place = from + (index / number) * (to - from - 3);
    made.push(s("line", { class: "later", x1: place, x2: place, y1: LANES.decode - BAR / 2, y2: LANES.client }), s("circle", { class: "t-good", cx: place, cy: LANES.client, r: 2.4 }));
  }
  return made;
}

function bar(from, to, y, tone, words) {
  if (to - from < 0.5) return null;
  const group = s("g", null, s("rect", { class: `t-${tone}`, x: from, y: y - BAR / 2, width: Math.max(1, to - from - 1), height: BAR, rx: 3 }));
  if (words && to - from > words.length * 6.6 + 12) group.append(s("text", { class: "inbar", x: (from + to) / 2, y: y + 4, "text-anchor": "middle" }, words));
  return group;
}

function arrow(x, from, to, kind) {
  const up = to < from;
  const tip = up ? to + 6 : to - 6;
  return s("g", { class: `arrow ${kind}` }, s("line", { x1: x, x2: x, y1: from, y2: tip }), s("path", { d: up ? `M ${x - 4} ${tip + 2} L ${x} ${tip - 5} L ${x + 4} ${tip + 2} Z` : `M ${x - 4} ${tip - 2} L ${x} ${tip + 5} L ${x + 4} ${tip - 2} Z` }));
}

// A text that stays inside the drawing.
function text(x, y, words, plan, kind = "note", anchor = "start") {
  const wide = words.length * 6.4;
  if (anchor === "start" && x + wide > plan.right) return s("text", { class: kind, x: plan.right, y, "text-anchor": "end" }, words);
  return s("text", { class: kind, x, y, "text-anchor": anchor }, words);
}

function momentOf(entry, time) {
  const at = entry.at_s;
  const first = isSplit(entry) ? entry.prefill_worker : entry.decode_worker;
  if (at.prefill_started === null || time < at.prefill_started) return `the prompt waits for its first step on ${first}`;
  if (at.first_token === null || time < at.first_token) {
    const moving = entry.transfer && at.committed !== null && time >= at.committed - entry.transfer.seconds;
    return `${first} computes the prompt${moving ? `, and its KV already moves to ${entry.decode_worker}` : ""}`;
  }
  if (at.committed !== null && time < at.committed) return `the client has token 1; the rest of the KV moves to ${entry.decode_worker}`;
  if (at.decode_started !== null && time < at.decode_started) return `${entry.decode_worker} owns the KV; the request waits for its next step`;
  if (at.decode_started === null) return "the client has token 1";
  return `${entry.decode_worker} computes the later tokens, which go straight to the client`;
}

function momentsOf(entry) {
  return PHASES.map((phase, index) => `${phase.name} ${seconds(entry.phases_s[index])}.`).join(" ");
}

function ended(entry) {
  const count = `${plain(entry.completion_tokens)} token${entry.completion_tokens === 1 ? "" : "s"}`;
  return `${entry.outcome === "finished" ? "Done" : `Ended (${entry.outcome})`} after ${seconds(entry.at_s.ended)}: ${count}, the first after ${seconds(entry.ttft_s)}.`;
}
