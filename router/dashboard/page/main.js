// Puts the page together and keeps it up to date.

import { byId, h, setText } from "./dom.js";
import { Feed } from "./feed.js";
import { clockTime, counted, lasted } from "./format.js";
import { Store } from "./store.js";
import { startTheme } from "./theme.js";
import { Overview } from "./overview.js";
import { Blame, Latency, Requests } from "./series.js";
import { Misses } from "./misses.js";
import { Cluster } from "./cluster.js";
import { Events, Plan } from "./plan.js";
import { Walk } from "./walk.js";

const SPANS = [["60", "1 min"], ["300", "5 min"], ["900", "15 min"]];

const store = new Store();
const walk = new Walk();
const views = [
  new Overview(), new Requests(), new Blame(),
  new Latency("ttft", "Time to first token", "request received until token 1 left"),
  new Latency("tpot", "Time per output token", "after the first, the handoff's gap included"),
  walk, new Misses((entry) => walk.show(entry)), new Cluster(), new Plan(), new Events(),
];

function draw() {
  if (store.state === null) return;
  byId("main").hidden = false;
  byId("key").hidden = true;
  const { cluster, time } = store.state;
  setText(byId("model"), cluster.model);
  document.title = `${cluster.model} · pdserve`;
  drawGroups();
  for (const view of views) view.draw(store);
  drawBanners();
  setText(byId("foot"), `pdserve ${cluster.version} · up ${lasted(time.up_s)} · times by the router's clock; percentiles within 2.2 %; charts in steps of 5 s · no prompt and no answer is ever shown here`);
}

function drawBanners() {
  const { workers, cluster } = store.state;
  const down = workers.filter((one) => !one.up);
  const made = [];
  if (down.length) made.push(h("div", { class: "banner bad" }, h("strong", null, `${counted(down.length, "worker is", "workers are")} down: `), down.slice(0, 6).map((one) => one.id).join(", ") + (down.length > 6 ? " and more" : "")));
  if (!cluster.ready) made.push(h("div", { class: "banner bad" }, h("strong", null, "Not ready: "), "new requests are refused until a decode worker is up, or the server is stopping"));
  const text = made.map((one) => one.textContent).join();
  if (byId("banners").said !== text) byId("banners").replaceChildren(...made);
  byId("banners").said = text;
}

// Which requests the charts show: only worth a choice when there are classes.
function drawGroups() {
  const names = store.state.classes.map((one) => one.name);
  const signature = names.join();
  const box = byId("classes");
  if (names.length < 2 || box.groupsOf === signature) return;
  box.groupsOf = signature;
  const bar = h("div", { class: "segments groups", role: "group", "aria-label": "Class shown in the charts" });
  choice(bar, ["All classes", ...names].map((name, index) => [index, name]), store.group, (index) => {
    store.group = index;
    draw();
  });
  byId("requests").parentElement.before(h("div", { class: "groupbar" }, h("span", { class: "dim" }, "Charts show"), bar));
}

function choice(bar, options, chosen, choose) {
  const buttons = options.map(([value, text]) => h("button", { type: "button", "aria-pressed": String(value === chosen), onclick: () => {
    for (const [index, button] of buttons.entries()) button.setAttribute("aria-pressed", String(options[index][0] === value));
    choose(value);
  } }, text));
  bar.replaceChildren(...buttons);
}

function drawLink(state, heard) {
  const pill = byId("link");
  pill.dataset.state = state;
  document.body.classList.toggle("stale", state === "lost" && store.state !== null);
  if (state === "live") setText(byId("link-text"), "Live");
  else if (heard) setText(byId("link-text"), `Connection lost · last update ${clockTime(heard / 1000)}`);
  else setText(byId("link-text"), "No connection yet, trying");
}

function askKey(problem) {
  byId("main").hidden = true;
  byId("key").hidden = false;
  byId("link").dataset.state = "wait";
  setText(byId("link-text"), "Key needed");
  setText(byId("key-problem"), problem);
  byId("key-field").value = "";
  byId("key-field").focus();
}

const feed = new Feed({
  news: (kind, data) => {
    store.apply(kind, data);
    draw();
  },
  link: drawLink,
  key: askKey,
});

startTheme();
choice(byId("spans"), SPANS, store.span, (span) => {
  store.span = span;
  draw();
});
byId("key").addEventListener("submit", (event) => {
  event.preventDefault();
  feed.useKey(byId("key-field").value);
});
feed.run();
