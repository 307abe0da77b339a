// Trying an image: dropped, chosen or pasted, and asked for at an operating point within a budget.

import { drawBoxes, seen } from "./boxes.js";
import { byId, element, milliseconds, plural, say } from "./dom.js";
import { Problem, ask } from "./gateway.js";

const TAKEN = ["image/jpeg", "image/png"]; // what the gateway decodes; a browser makes a JPEG of others
const MOST_LISTED = 8;
const CONFIDENT = 0.25; // detections below are neither drawn nor listed

export class Try {
  #image = null;
  #asked = 0; // an answer that another image has overtaken is not shown

  constructor() {
    byId("try").addEventListener("submit", (event) => { event.preventDefault(); if (this.#image) this.#ask(); });
    byId("try-file").addEventListener("change", ({ target }) => { this.take(target.files[0]); target.value = ""; });
    // Wherever it is dropped: a browser would leave the page for the image.
    addEventListener("dragover", (event) => { event.preventDefault(); byId("drop").classList.add("over"); });
    addEventListener("dragleave", (event) => { if (event.relatedTarget === null) byId("drop").classList.remove("over"); });
    addEventListener("drop", (event) => { event.preventDefault(); byId("drop").classList.remove("over"); this.take(event.dataTransfer.files[0]); });
    addEventListener("paste", (event) => { if (event.clipboardData.files.length > 0) this.take(event.clipboardData.files[0]); });
  }

  // The names that may be asked for.
  offer(points) {
    const chosen = byId("try-point").value;
    byId("try-point").replaceChildren(new Option("in force", ""), ...points.map((name) => new Option(name, name)));
    byId("try-point").value = points.includes(chosen) ? chosen : "";
  }

  async take(file) {
    if (!file) return;
    try {
      if (!file.type.startsWith("image/")) throw new Error(`${file.name || "this"} is no image`);
      const bitmap = await seen(file);
      const blob = TAKEN.includes(file.type) ? file : await encoded(bitmap);
      this.#image?.bitmap.close();
      this.#image = { blob, bitmap };
    } catch (error) {
      this.#fail(`It cannot be shown: ${error.message}.`);
      return;
    }
    byId("try-again").disabled = false;
    await this.#ask();
  }

  async #ask() {
    const number = (this.#asked += 1);
    const { blob, bitmap } = this.#image;
    const headers = { "Content-Type": blob.type };
    if (byId("try-point").value) headers["X-Operating-Point"] = byId("try-point").value;
    if (byId("try-budget").value) headers["X-Latency-Budget-Ms"] = byId("try-budget").value;
    say(byId("try-summary"), "Asking…");
    const began = performance.now();
    try {
      const answer = await ask("v1/detect", { method: "POST", body: blob, headers });
      if (number === this.#asked) this.#show(bitmap, answer, performance.now() - began);
    } catch (error) {
      if (number !== this.#asked) return;
      drawBoxes(byId("try-picture"), bitmap, []);
      this.#fail(error instanceof Problem ? error.message : "The gateway does not answer.", true);
    }
  }

  #show(bitmap, answer, trip) {
    const found = answer.detections.filter(({ score }) => score >= CONFIDENT);
    drawBoxes(byId("try-picture"), bitmap, found);
    byId("try-result").hidden = false;
    byId("drop").classList.add("filled");
    byId("try-summary").className = "";
    say(byId("try-summary"), `${found.length} found by ${answer.stages.at(-1).variant} in ${milliseconds(answer.timing.total_ms)}.`);
    const { queue_ms: queue, decode_ms: decode, total_ms: total } = answer.timing;
    const cut = answer.cut && `${answer.cut.stage} was left out: ${answer.cut.reason === "deadline" ? "it would not have met the budget" : "the engine failed"}`;
    const { certificate } = answer;
    byId("try-facts").replaceChildren(...fact("Operating point", answer.operating_point),
      ...fact(plural(answer.stages.length, "stage"), element("ol", {}, ...answer.stages.map((stage) => element("li", {}, `${stage.variant} `, element("b", {}, milliseconds(stage.latency_ms)))))),
      ...fact("Times", `queue ${milliseconds(queue)}, decoding ${milliseconds(decode)}, total ${milliseconds(total)}, round trip ${milliseconds(trip)}`),
      ...(cut ? fact("Cut", cut) : []),
      ...fact("Certificate", certificate ? `excess loss at most ${certificate.epsilon}, ${Math.round(100 * (1 - certificate.delta))} % confidence` : "none for this answer"),
      ...(found.length > 0 ? fact("Found", element("ol", {}, ...found.slice(0, MOST_LISTED).map(({ label, score }) => element("li", {}, `${label} `, element("b", {}, score.toFixed(2)))),
        ...(found.length > MOST_LISTED ? [element("li", {}, `and ${found.length - MOST_LISTED} more`)] : []))) : []));
  }

  #fail(text, pictured = false) {
    byId("try-result").hidden = !pictured;
    byId("drop").classList.toggle("filled", pictured);
    byId("try-facts").replaceChildren();
    byId("try-summary").className = "bad";
    say(byId("try-summary"), text);
  }
}

const fact = (name, value) => [element("dt", {}, name), element("dd", {}, value)];

function encoded(bitmap) {
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  canvas.getContext("2d").drawImage(bitmap, 0, 0);
  return canvas.convertToBlob({ type: "image/jpeg", quality: 0.95 });
}
