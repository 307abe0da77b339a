// What the gateway counted over the last minutes, as this page saw it: a bounded list of states, and rates of them.

export const KEPT_S = 180;

export class History {
  #seen = [];

  add(state) {
    const last = this.#seen.at(-1);
    if (last && last.instance !== state.instance) this.#seen = []; // counts began anew
    else if (last && last.at_s >= state.at_s) return; // another page's question, already answered
    this.#seen.push(state);
    while (this.#seen.length > 0 && state.at_s - this.#seen[0].at_s > KEPT_S) this.#seen.shift();
  }

  get latest() { return this.#seen.at(-1) ?? null; }

  // The span of the last so many seconds, or since the last look; null where there is none yet.
  last(seconds) {
    const seen = this.#seen;
    if (seen.length < 2) return null;
    const begin = seen.findIndex((state) => this.latest.at_s - state.at_s <= seconds);
    return new Span(seen[Math.min(begin, seen.length - 2)], this.latest);
  }

  // A series whose every value is of the so many seconds before it.
  sliding(seconds, value) {
    const seen = this.#seen;
    let first = 0;
    return seen.slice(1).map((state, before) => {
      while (first < before && state.at_s - seen[first].at_s > seconds) first += 1;
      return { ago_s: this.latest.at_s - state.at_s, value: value(new Span(seen[first], state)) };
    });
  }
}

// Two states, and what happened from one to the other.
class Span {
  constructor(from, to) { Object.assign(this, { from, to }); }

  get seconds() { return this.to.at_s - this.from.at_s; }

  #grown(name) { return this.to.totals[name] - this.from.totals[name]; }

  #share(part, whole) { return this.#grown(whole) > 0 ? this.#grown(part) / this.#grown(whole) : null; }

  // Requests per second that ended so.
  rate(outcome) {
    const count = ({ totals }) => totals.outcomes.find(({ name }) => name === outcome).count;
    return (count(this.to) - count(this.from)) / this.seconds;
  }

  get ended() {
    return this.to.totals.outcomes.reduce((sum, { name }) => sum + this.rate(name), 0);
  }

  get budgetsMet() {
    const missed = this.#share("missed", "budgeted");
    return missed === null ? null : 1 - missed;
  }

  get escalated() { return this.#share("escalated", "decided"); }

  // By plan, its share of the answers.
  get shares() {
    const before = new Map(this.from.totals.answers.map(({ name, count }) => [name, count]));
    const grown = this.to.totals.answers.map(({ name, count }) => [name, count - (before.get(name) ?? 0)]);
    const all = grown.reduce((sum, [, count]) => sum + count, 0);
    return new Map(grown.filter(([, count]) => count > 0).map(([name, count]) => [name, count / all]));
  }

  // Milliseconds within which a share of the requests was answered: as Prometheus has it, evenly spread in a bucket.
  quantile(q) {
    const { bounds_ms: bounds } = this.to.totals;
    const within = this.to.totals.within.map((count, place) => count - this.from.totals.within[place]);
    const wanted = q * within.at(-1);
    if (within.at(-1) <= 0) return null;
    const place = within.findIndex((count) => count >= wanted && count > 0);
    if (place >= bounds.length) return bounds.at(-1);
    const low = place > 0 ? bounds[place - 1] : 0;
    const before = place > 0 ? within[place - 1] : 0;
    return low + ((bounds[place] - low) * (wanted - before)) / Math.max(within[place] - before, 1);
  }
}
