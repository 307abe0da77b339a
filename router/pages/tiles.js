// The row of figures: what is in force, and how the gateway does.

import { line, linear, onWidth } from "./chart.js";
import { byId, chain, drawing, known, milliseconds, percent, perSecond, plural, say } from "./dom.js";
import { KEPT_S } from "./history.js";

const OVER_S = 10; // what latencies and rates are taken over
const SHARE_S = 30; // what shares are taken over: they need more answers
const HEIGHT = 30;

export class Tiles {
  #widths = new Map();
  #lines = new Map();

  constructor() {
    for (const name of ["point", "rate", "budget", "latency", "escalated", "inside"]) {
      onWidth(byId(`tile-${name}`), (width) => { this.#widths.set(name, width); this.#redraw(name); });
    }
  }

  show(history, frontier, point) {
    const { latest } = history;
    const soon = history.last(OVER_S), later = history.last(SHARE_S);
    this.#tell("point", ...point, history.sliding(1.5, (span) => frontier.find(span.to.plan)?.map ?? null));
    this.#tell("rate", soon ? `${perSecond(soon.ended)} /s` : "–", soon ? `${perSecond(soon.rate("answered"))} answered, ${perSecond(soon.rate("shed"))} shed` : "",
      history.sliding(3, (span) => span.ended), 0);
    this.#tell("budget", percent(later?.budgetsMet), known(later?.budgetsMet) ? "of the answers that had one" : "no answer had a budget",
      history.sliding(OVER_S, (span) => span.budgetsMet), null, 1);
    this.#tell("latency", milliseconds(soon?.quantile(0.99)), known(soon?.quantile(0.5)) ? `half within ${milliseconds(soon.quantile(0.5))}` : "no answers",
      history.sliding(OVER_S, (span) => span.quantile(0.99)), 0);
    const expected = frontier.find(latest.plan)?.escalated;
    this.#tell("escalated", percent(later?.escalated), known(expected) ? `${percent(expected)} on calibration` : "of what cascades answered",
      history.sliding(OVER_S, (span) => span.escalated), 0, 1);
    this.#tell("inside", `${latest.inside} of ${latest.limit}`, `${latest.waiting} waiting, ${latest.busy} of ${plural(latest.workers, "worker")} busy`,
      history.sliding(1.5, (span) => span.to.inside), 0);
  }

  // low and high: what the line reaches at least; null for what there is.
  #tell(name, figure, note, series, low = null, high = null) {
    say(byId(`${name}-figure`), figure);
    say(byId(`${name}-note`), note);
    this.#lines.set(name, { series, low, high });
    this.#redraw(name);
  }

  #redraw(name) {
    const width = this.#widths.get(name);
    const { series, low, high } = this.#lines.get(name) ?? { series: [] };
    if (!width) return;
    const values = series.map(({ value }) => value).filter(known);
    const x = linear(KEPT_S, 0, 0, width);
    const least = Math.min(low ?? Infinity, ...values), most = Math.max(high ?? -Infinity, ...values);
    const y = linear(least, most > least ? most : least + 1, HEIGHT - 2, 2);
    const svg = byId(`tile-${name}`);
    svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    svg.replaceChildren(
      drawing("line", { x1: 0, x2: width, y1: HEIGHT - 1, y2: HEIGHT - 1 }),
      drawing("path", { d: values.length > 0 ? line(series.map(({ ago_s: ago, value }) => [x(ago), known(value) ? y(value) : null])) : "" }));
  }
}

// What the first tile says: the point in force by name, or a plan that load has put in its place.
export function pointInForce(state, frontier, home) {
  const plan = frontier.find(state.plan);
  const stages = plan ? chain(plan.stages) : state.plan;
  if (state.held) return [state.operating_point, `held by an administrator: ${stages}`];
  if (!plan || plan.points.includes(state.operating_point)) {
    return [state.operating_point, `${state.operating_point === home ? "" : `${home} gives way to load: `}${stages}`];
  }
  return [`below ${home}`, `gives way to load: ${stages}`];
}
