// The chart of accuracy against latency, with the operating point in force moving on it.

import { line, linear, logTicks, logarithmic, onWidth, ticks } from "./chart.js";
import { accuracy, byId, chain, drawing, element, known, milliseconds, percent, say } from "./dom.js";

const MARGIN = { left: 46, right: 18, top: 22, bottom: 42 };
const HALO = 24; // the radius of all answers, in pixels

export class Frontier {
  #document = null;
  #plotted = []; // those with an accuracy, by cost
  #cost = "expected_ms";
  #width = 0;
  #places = new Map(); // by name, in pixels
  #active = null; // the name of what is described below the chart
  #live = null; // the plan in force
  #shares = new Map();
  #root = byId("frontier");
  #marker = null;
  #halos = null;
  #options = null;

  constructor() {
    onWidth(byId("frontier-frame"), (width) => { this.#width = width; this.#draw(); });
    for (const choice of document.getElementsByName("cost")) {
      choice.addEventListener("change", () => { this.#cost = choice.value; this.#sort(); this.#draw(); });
    }
    this.#root.addEventListener("pointermove", (event) => this.#describe(this.#nearest(event)));
    this.#root.addEventListener("pointerleave", () => this.#describe(null));
    this.#root.addEventListener("keydown", (event) => this.#step(event));
    this.#root.addEventListener("focusin", () => this.#describe(this.#active ?? this.#live));
    this.#root.addEventListener("focusout", () => this.#describe(null));
  }

  // Takes a frontier as the gateway serves it.
  show(told) {
    this.#document = told;
    this.#active = null;
    this.#sort();
    this.#draw();
    this.#tabulate();
    say(byId("frontier-about"), `${told.plotted.length} plans on ${told.runtime} ${told.runtime_version}, data set ${told.dataset}; latencies ${told.profiles}.`);
  }

  // Takes the plan in force, and by plan its share of the latest answers.
  move(plan, shares) {
    this.#live = plan;
    this.#shares = shares;
    this.#place();
  }

  find(name) { return this.#document?.plotted.find((one) => one.name === name) ?? null; }

  get home() { return this.#document?.plotted.find((one) => one.points.includes(this.#document.home)) ?? null; }

  #sort() {
    this.#plotted = this.#document.plotted.filter((one) => known(one.map)).sort((a, b) => a[this.#cost] - b[this.#cost]);
  }

  #kept(one) { return this.#cost === "expected_ms" ? one.on_frontier : one.on_p99_frontier; }

  #draw() {
    if (this.#document === null || this.#width === 0) return;
    const width = this.#width;
    const height = Math.round(Math.min(430, Math.max(290, width * 0.52)));
    const costs = this.#plotted.map((one) => one[this.#cost]);
    const scores = this.#plotted.map((one) => one.map);
    const [least, most] = [Math.min(...scores), Math.max(...scores)];
    const room = Math.max((most - least) * 0.08, 0.005);
    const [cheap, dear] = [Math.min(...costs) / 1.12, Math.max(...costs) * 1.12];
    const x = logarithmic(cheap, dear, MARGIN.left, width - MARGIN.right);
    const y = linear(least - room, most + room, height - MARGIN.bottom, MARGIN.top);
    this.#places = new Map(this.#plotted.map((one) => [one.name, { x: x(one[this.#cost]), y: y(one.map) }]));
    this.#root.setAttribute("viewBox", `0 0 ${width} ${height}`);
    this.#root.setAttribute("height", height);
    this.#halos = drawing("g", { class: "halos" });
    this.#marker = drawing("g", { class: "marker", id: "live-point", "aria-hidden": "true" },
      drawing("circle", { class: "ring", r: 12 }), drawing("circle", { class: "core", r: 4 }),
      label("now", 17, 16, "start"));
    this.#options = drawing("g", {
      role: "listbox", tabindex: 0, id: "frontier-points", "aria-label": "Models and plans, from fast to slow; arrow keys choose one",
      "aria-orientation": "horizontal",
    }, ...this.#plotted.map((one) => this.#option(one)));
    this.#root.replaceChildren(
      this.#axes(x, y, cheap, dear, least - room, most + room, width, height),
      drawing("path", { class: "curve", d: line(this.#plotted.filter((one) => this.#kept(one)).map((one) => this.#at(one))) }),
      this.#halos, this.#options, this.#marker, drawing("g", { "aria-hidden": "true" }, ...this.#names()),
    );
    this.#place();
    this.#describe(this.#active);
  }

  #at(one) {
    const { x, y } = this.#places.get(one.name);
    return [x, y];
  }

  #axes(x, y, cheap, dear, low, high, width, height) {
    const bottom = height - MARGIN.bottom;
    return drawing("g", { class: "axes", "aria-hidden": "true" },
      ...ticks(low, high, 6).flatMap((value) => [
        drawing("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: y(value), y2: y(value) }),
        label(value.toFixed(high - low > 0.6 ? 1 : 2), MARGIN.left - 8, y(value) + 4, "end"),
      ]),
      ...logTicks(cheap, dear, x, 38).flatMap((value) => [
        drawing("line", { x1: x(value), x2: x(value), y1: bottom, y2: bottom + 5 }),
        label(String(value), x(value), bottom + 19, "middle"),
      ]),
      drawing("line", { class: "base", x1: MARGIN.left, x2: width - MARGIN.right, y1: bottom, y2: bottom }),
      label(this.#cost === "expected_ms" ? "mean ms per frame" : "p99 ms per frame", width - MARGIN.right, height - 4, "end"),
      label("mAP", 4, 14, "start"));
  }

  #option(one) {
    const [x, y] = this.#at(one);
    const kind = `${one.stages.length > 1 ? "cascade" : "model"} ${this.#kept(one) ? "kept" : "muted"} ${one.points.length ? "named" : ""}`;
    const shape = one.stages.length > 1
      ? drawing("path", { d: "M0 -6L6 0L0 6L-6 0Z" })
      : drawing("circle", { r: 5 });
    return drawing("g", {
      role: "option", id: `plan-${one.name}`, class: kind, transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`,
      "aria-label": this.#words(one), "aria-selected": "false",
    }, shape);
  }

  // Above and left of the curve there is nothing else.
  #names() {
    return this.#plotted.filter((one) => one.points.length > 0).map((one) => {
      const [x, y] = this.#at(one);
      const text = one.points.join(", ");
      const fits = x - 12 - text.length * 8 > MARGIN.left;
      return label(text, fits ? x - 11 : x - 4, fits ? y - 9 : y - 14, fits ? "end" : "start", "name");
    });
  }

  #place() {
    const place = this.#places.get(this.#live);
    if (this.#marker === null) return;
    this.#marker.classList.toggle("nowhere", place === undefined);
    if (place) this.#marker.style.transform = `translate(${place.x.toFixed(1)}px, ${place.y.toFixed(1)}px)`;
    this.#halos.replaceChildren(...[...this.#shares].filter(([name]) => this.#places.has(name)).map(([name, share]) => {
      const { x, y } = this.#places.get(name);
      return drawing("circle", { cx: x.toFixed(1), cy: y.toFixed(1), r: (HALO * Math.sqrt(share)).toFixed(1) });
    }));
    const plan = this.find(this.#live);
    if (plan) this.#root.setAttribute("aria-label", `Accuracy against latency. In force: ${this.#words(plan)}`);
  }

  #words(one) {
    const points = one.points.length ? `, operating point ${one.points.join(" and ")}` : "";
    const certificate = known(one.epsilon)
      ? `; excess loss at most ${one.epsilon} with ${percent(1 - one.delta)} confidence`
      : "";
    const escalated = known(one.escalated) ? `, ${percent(one.escalated)} sent on` : "";
    return `${chain(one.stages)}${points}: ${accuracy(one.map)} mAP on ${one.split}, ${milliseconds(one.expected_ms)} mean,`
      + ` ${milliseconds(one.p99_ms)} p99${escalated}${certificate}${this.#kept(one) ? "" : "; another is as accurate for less"}`;
  }

  #nearest(event) {
    const box = this.#root.getBoundingClientRect();
    const away = ({ x, y }) => Math.hypot(x - (event.clientX - box.left), y - (event.clientY - box.top));
    let best = null;
    for (const [name, place] of this.#places) if (best === null || away(place) < away(this.#places.get(best))) best = name;
    return best !== null && away(this.#places.get(best)) < 40 ? best : null;
  }

  #step(event) {
    const names = this.#plotted.map(({ name }) => name);
    const at = names.indexOf(this.#active);
    const to = { ArrowRight: at + 1, ArrowUp: at + 1, ArrowLeft: at - 1, ArrowDown: at - 1, Home: 0, End: names.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    this.#describe(names[Math.min(Math.max(to, 0), names.length - 1)]);
  }

  #describe(name) {
    const one = name === null ? null : this.find(name);
    this.#active = one === null ? null : name;
    for (const option of this.#options?.children ?? []) {
      const chosen = option.id === `plan-${name}`;
      option.setAttribute("aria-selected", chosen);
      option.classList.toggle("active", chosen);
    }
    if (one === null) this.#options?.removeAttribute("aria-activedescendant");
    else this.#options.setAttribute("aria-activedescendant", `plan-${name}`);
    say(byId("frontier-readout"), one === null ? "Point at a plan, or choose one with the arrow keys." : this.#words(one));
  }

  #tabulate() {
    byId("frontier-rows").replaceChildren(...this.#document.plotted.map((one) => element("tr", {},
      element("th", { scope: "row" }, chain(one.stages), ...(one.points.length ? [element("b", {}, ` ${one.points.join(", ")}`)] : [])),
      element("td", {}, accuracy(one.map)), element("td", {}, one.expected_ms.toFixed(1)), element("td", {}, one.p99_ms.toFixed(1)),
      element("td", {}, known(one.escalated) ? percent(one.escalated) : ""), element("td", {}, one.on_frontier ? "yes" : ""))));
  }
}

function label(text, x, y, anchor, kind = "") {
  return drawing("text", { x: x.toFixed(1), y: y.toFixed(1), "text-anchor": anchor, class: kind || null }, text);
}
