// Requests per second by how they ended, over the last minutes.

import { linear, onWidth, ticks } from "./chart.js";
import { byId, drawing, element, perSecond, say } from "./dom.js";
import { KEPT_S } from "./history.js";

const OUTCOMES = ["answered", "shed", "failed", "rejected", "cancelled", "superseded"]; // from the bottom up
const MEANINGS = {
  answered: "got an answer", shed: "refused because of load", failed: "the gateway or its engine failed",
  rejected: "the request was at fault", cancelled: "the sender left", superseded: "a newer frame of its stream took its place",
};
const HEIGHT = 200;
const MARGIN = { left: 46, right: 18, top: 12, bottom: 26 };
const OVER_S = 3; // what a rate is taken over

export class Traffic {
  #width = 0;
  #history = null;
  #root = byId("traffic");
  #figures = new Map();

  constructor() {
    onWidth(byId("traffic-frame"), (width) => { this.#width = width; this.#draw(); });
    byId("traffic-legend").append(...OUTCOMES.map((name) => {
      const figure = element("b", {}, "–");
      this.#figures.set(name, figure);
      return element("li", { class: name, title: MEANINGS[name] }, element("i", { "aria-hidden": "true" }), `${name} `, figure);
    }));
  }

  show(history) {
    this.#history = history;
    const now = history.last(OVER_S + 0.5);
    for (const [name, figure] of this.#figures) say(figure, now ? perSecond(now.rate(name)) : "–");
    this.#draw();
  }

  #draw() {
    if (this.#history === null || this.#width === 0) return;
    const width = this.#width;
    const series = this.#history.sliding(OVER_S, (span) => OUTCOMES.map((name) => span.rate(name)));
    const sums = series.map(({ value }) => value.reduce((sum, each) => sum + each, 0));
    const most = Math.max(...sums, 1 / 1.1) * 1.1;
    const x = linear(KEPT_S, 0, MARGIN.left, width - MARGIN.right);
    const y = linear(0, most, HEIGHT - MARGIN.bottom, MARGIN.top);
    let below = series.map(() => 0);
    const areas = OUTCOMES.map((name, place) => {
      const above = series.map(({ value }, at) => below[at] + value[place]);
      const shape = [
        ...series.map(({ ago_s: ago }, at) => `${x(ago).toFixed(1)} ${y(above[at]).toFixed(1)}`),
        ...series.map(({ ago_s: ago }, at) => `${x(ago).toFixed(1)} ${y(below[at]).toFixed(1)}`).reverse(),
      ];
      below = above;
      return drawing("path", { class: name, d: shape.length > 2 ? `M${shape.join("L")}Z` : "" });
    });
    const bottom = HEIGHT - MARGIN.bottom;
    this.#root.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.#root.setAttribute("height", HEIGHT);
    this.#root.replaceChildren(
      drawing("g", { class: "axes" },
        ...ticks(0, most, 4).flatMap((value) => [
          drawing("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
          drawing("text", { x: MARGIN.left - 8, y: y(value) + 4, "text-anchor": "end" }, String(value)),
        ]),
        ...[180, 120, 60, 0].map((ago) => drawing("text", {
          x: x(ago), y: HEIGHT - 6, "text-anchor": ago === KEPT_S ? "start" : ago === 0 ? "end" : "middle",
        }, ago === 0 ? "now" : `${ago / 60} min${width > 420 ? " ago" : ""}`)),
        drawing("line", { class: "base", x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom })),
      ...areas,
      ...(sums.some((sum) => sum > 0) ? [] : [drawing("text", {
        class: "empty", x: (MARGIN.left + width - MARGIN.right) / 2, y: HEIGHT / 2, "text-anchor": "middle",
      }, "No requests since this page was opened")]),
    );
    this.#root.setAttribute("aria-label", `Requests per second over the last three minutes; now ${
      OUTCOMES.map((name) => `${this.#figures.get(name).textContent} ${name}`).join(", ")}`);
  }
}
