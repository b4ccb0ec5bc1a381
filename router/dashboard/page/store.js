// The state as the server last told it: whole, then section by section.

export class Store {
  constructor() {
    this.state = null;
    this.span = "300"; // seconds shown
    this.group = 0; // 0: all classes, else one of them
    this.loads = new Map(); // worker id -> running sequences, one a second, as far as this page has seen
  }

  apply(kind, news) {
    if (kind === "state") {
      this.state = news;
    } else {
      const { points, misses, recent, ...sections } = news;
      const history = this.state.history;
      history.points.push(...points);
      const most = Math.round(900 / history.bucket_s);
      history.points.splice(0, Math.max(0, history.points.length - most));
      Object.assign(this.state, sections);
      const { kept } = this.state.cluster;
      this.state.misses = [...misses, ...this.state.misses].slice(0, kept.misses);
      this.state.recent = [...recent, ...this.state.recent].slice(0, kept.recent);
    }
    this.noteLoads();
  }

  noteLoads() {
    const ids = new Set();
    for (const worker of this.state.workers) {
      ids.add(worker.id);
      const loads = this.loads.get(worker.id) || [];
      loads.push(worker.running === undefined ? null : worker.running);
      loads.splice(0, Math.max(0, loads.length - 60));
      this.loads.set(worker.id, loads);
    }
    for (const id of [...this.loads.keys()]) if (!ids.has(id)) this.loads.delete(id);
  }

  get spanSeconds() {
    return Number(this.span);
  }

  // The sums over the time shown.
  get sums() {
    return this.state.spans[this.span];
  }

  get sumsOfGroup() {
    return this.group === 0 ? this.sums.all : this.sums.classes[this.group - 1];
  }

  // One object for each bucket of the time shown, oldest first: {age, <column>: value}; empty buckets have zeros.
  points(group) {
    const { bucket_s: step, columns, points } = this.state.history;
    const number = Math.round(this.spanSeconds / step);
    const byNumber = new Map(points.map(([id, rows]) => [id, rows]));
    const newest = points.length ? points[points.length - 1][0] : 0;
    const made = [];
    for (let back = number - 1; back >= 0; back -= 1) {
      const rows = byNumber.get(newest - back);
      const row = rows ? rows[Math.min(group, rows.length - 1)] : null;
      const point = { age: (back + 0.5) * step, known: rows !== undefined };
      columns.forEach((name, index) => {
        point[name] = row ? row[index] : name.includes("_p") ? null : 0;
      });
      made.push(point);
    }
    return made;
  }
}
