// Recent frames with their boxes and the stage that answered; the gateway keeps some while this page asks for them.

import { colourOf } from "./boxes.js";
import { byId, drawing, element, milliseconds, plural, say } from "./dom.js";
import { ask } from "./gateway.js";

const OFF = "Off. A gateway that is started with --console-frames 12 shows its latest frames here: small, from memory, and kept only while somebody looks.";

export class Frames {
  #after = 0;
  #instance = null;
  #shown = []; // newest first: {node, age, at}
  #paused = false;

  constructor() {
    byId("frames-pause").addEventListener("click", () => {
      this.#paused = !this.#paused;
      byId("frames-pause").setAttribute("aria-pressed", this.#paused);
    });
  }

  async show(state) {
    const most = state.frames;
    byId("frames-pause").hidden = most === 0;
    if (most === 0) return this.#empty(OFF);
    if (this.#instance !== state.instance) {
      [this.#instance, this.#after, this.#shown] = [state.instance, 0, []];
    }
    if (this.#paused) return;
    const { frames } = await ask(`console/frames?after=${this.#after}`);
    for (const frame of frames) {
      this.#after = frame.number;
      this.#shown.unshift({ node: pictured(frame), at: performance.now() - frame.age_s * 1000 });
    }
    this.#shown.length = Math.min(this.#shown.length, most);
    if (this.#shown.length === 0) return this.#empty("No frame has been answered since this page was opened.");
    byId("frames-empty").hidden = true;
    for (const { node, at } of this.#shown) say(node.querySelector("time"), ago((performance.now() - at) / 1000));
    if (frames.length > 0) byId("frames").replaceChildren(...this.#shown.map(({ node }) => node));
  }

  #empty(text) {
    byId("frames").replaceChildren();
    byId("frames-empty").hidden = false;
    say(byId("frames-empty"), text);
  }
}

const ago = (seconds) => (seconds < 60 ? `${Math.floor(seconds)} s ago` : `${Math.floor(seconds / 60)} min ago`);

function pictured(frame) {
  const last = frame.stages.at(-1).variant;
  const marks = [frame.cut ? `cut before ${frame.cut}` : "", frame.late ? "late" : ""].filter(Boolean);
  return element("li", {},
    element("div", { class: "thumb" },
      element("img", {
        src: `data:image/jpeg;base64,${frame.jpeg}`, width: frame.width, height: frame.height, decoding: "async",
        alt: frame.boxes.length ? `A frame with ${frame.boxes.map(({ label }) => label).join(", ")}` : "A frame in which nothing was found",
      }),
      drawing("svg", { viewBox: `0 0 ${frame.width} ${frame.height}`, "aria-hidden": "true" }, ...frame.boxes.map((box) => drawing("rect", {
        x: box.x1 * frame.width, y: box.y1 * frame.height, width: (box.x2 - box.x1) * frame.width,
        height: (box.y2 - box.y1) * frame.height, stroke: colourOf(box.class_id),
      })))),
    element("b", {}, last),
    element("p", {}, `${plural(frame.stages.length, "stage")}, ${milliseconds(frame.total_ms)}, ${frame.boxes.length} found, `,
      ...marks.flatMap((mark) => [element("em", {}, mark), ", "]), element("time", {})));
}
