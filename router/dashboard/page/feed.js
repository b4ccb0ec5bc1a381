// News from the server: one stream that is kept open; where that is refused, a question every second.

const STATE = "dashboard/state";
const EVENTS = "dashboard/events";
const KEY = "pdserve-api-key";
const PATIENCE_MS = 5000; // news come every second
const HIDDEN_MS = 30000; // a page that nobody sees stops asking

export class Feed {
  // on.news(kind, data), on.link(state, detail), on.key(problem)
  constructor(on) {
    this.on = on;
    this.heard = 0;
    this.tries = 0;
    this.stop = null;
    document.addEventListener("visibilitychange", () => this.seen());
    setInterval(() => this.watchdog(), 1000);
  }

  useKey(key) {
    sessionStorage.setItem(KEY, key);
    this.run();
  }

  async run() {
    this.end();
    const stop = new AbortController();
    this.stop = stop;
    while (!stop.signal.aborted) {
      try {
        await this.listen(stop.signal);
        throw new Error("the stream ended");
      } catch (problem) {
        if (stop.signal.aborted) return;
        if (problem instanceof NeedsKey) {
          this.end();
          this.on.key(problem.message);
          return;
        }
        this.tries += 1;
        this.on.link("lost", this.heard);
        await pause(Math.min(8000, 500 * 2 ** Math.min(this.tries, 4)));
      }
    }
  }

  async listen(signal) {
    const answer = await this.ask(EVENTS, signal);
    if (answer.status === 503) return this.poll(signal);
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let waiting = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return undefined;
      waiting += value;
      const messages = waiting.split("\n\n");
      waiting = messages.pop();
      for (const message of messages) {
        const [, kind, data] = /^event: (\w+)\ndata: (.*)$/s.exec(message);
        this.heardNews(kind, JSON.parse(data));
      }
    }
  }

  async poll(signal) {
    let etag = "";
    for (;;) {
      const answer = await this.ask(STATE, signal, etag ? { "if-none-match": etag } : {});
      if (answer.status === 200) {
        etag = answer.headers.get("etag") || "";
        this.heardNews("state", await answer.json());
      } else if (answer.status !== 304) {
        throw new Error(`the server answered ${answer.status}`);
      }
      await pause(1000);
    }
  }

  async ask(path, signal, headers = {}) {
    const key = sessionStorage.getItem(KEY);
    const answer = await fetch(path, {
      signal,
      cache: "no-store",
      headers: key === null ? headers : { ...headers, authorization: `Bearer ${key}` },
    });
    if (answer.status === 401) throw new NeedsKey(key === null ? "" : "That key was not accepted.");
    if (answer.status === 403) throw new NeedsKey("That key speaks for one tenant; the dashboard shows all of them.");
    return answer;
  }

  heardNews(kind, data) {
    this.heard = Date.now();
    this.tries = 0;
    this.on.news(kind, data);
    this.on.link("live", this.heard);
  }

  watchdog() {
    if (this.stop && this.heard && Date.now() - this.heard > PATIENCE_MS) this.on.link("lost", this.heard);
    if (this.stop && this.heard && Date.now() - this.heard > 3 * PATIENCE_MS && !document.hidden) {
      this.heard = Date.now() - PATIENCE_MS - 1; // a connection that is silent without an end
      this.run();
    }
  }

  seen() {
    clearTimeout(this.hiding);
    if (document.hidden) this.hiding = setTimeout(() => this.end(), HIDDEN_MS);
    else if (this.stop === null && this.heard) this.run();
  }

  end() {
    if (this.stop) this.stop.abort();
    this.stop = null;
  }
}

class NeedsKey extends Error {}

function pause(milliseconds) {
  return new Promise((done) => setTimeout(done, milliseconds));
}
