// Whether what was measured still holds: engine, latencies, frames and answers, certificates.

import { byId, element, known, percent, plural, say } from "./dom.js";

const NEAR = 0.05; // of the way to an alarm: less is noise

export class Drift {
  #alarms = "";

  show(state, frontier) {
    const ringing = state.signals.filter((signal) => signal.rings);
    const plan = frontier.find(state.plan);
    this.#tell("engine", state.engine_up, state.engine_up ? "answers" : "does not answer; requests get 503");
    this.#tell("ready", state.ready, state.ready ? "takes requests" : "is not ready: it drains, or its engine does not answer");
    this.#tell("latencies", state.latency_drift.length === 0,
      state.latency_drift.length === 0 ? "as their profiles say" : `slower than published: ${state.latency_drift.join(", ")}`);
    this.#tell("frames-drift", ringing.length === 0,
      ringing.length === 0 ? "like calibration's" : `not like calibration's: ${plural(ringing.length, "signal")} ringing`);
    this.#tell("certificates", state.void.length === 0, state.certified === 0 ? "no plan has one"
      : state.void.length === 0 ? `${state.certified} of ${state.certified} hold` : `${state.void.length} of ${state.certified} void while drift rings`);
    say(byId("in-force"), !plan ? "" : !known(plan.epsilon) ? "The plan in force has no certificate of its own."
      : state.void.includes(plan.name) ? "The certificate of the plan in force is void at present."
        : `The plan in force loses at most ${plan.epsilon} to always asking its last stage, with ${percent(1 - plan.delta)} confidence.`);
    say(byId("slow-down"), state.slowest && state.slow_down > 1.05
      ? `Just now ${state.slowest} takes ${state.slow_down.toFixed(1)} times as long as its profile says.` : "");
    const near = state.signals.filter((signal) => signal.rings || signal.height >= NEAR);
    byId("signals").replaceChildren(...near.map((signal) => element("li", { class: signal.rings ? "rings" : null },
      element("span", {}, `${signal.name} `, element("small", {}, signal.subject)),
      element("meter", { min: 0, max: 1, value: Math.min(signal.height, 1), "aria-label": `${signal.name} of ${signal.subject}` }),
      element("b", {}, signal.rings ? "rings" : percent(signal.height)))));
    byId("no-signals").hidden = near.length > 0;
    say(byId("no-signals"), state.signals.length > 0 ? "None is anywhere near." : "This set was published without references to compare with.");
    this.#announce([...state.latency_drift.map((name) => `latency of ${name}`), ...ringing.map(({ subject, name }) => `${name} of ${subject}`)]);
  }

  #tell(id, well, text) {
    const row = byId(id);
    row.className = well ? "well" : "alarm";
    say(row.querySelector("b"), well ? "ok" : "alarm");
    say(row.querySelector("span"), text);
  }

  // Read out when alarms change, and only then.
  #announce(alarms) {
    const text = alarms.join(", ");
    if (text === this.#alarms) return;
    this.#alarms = text;
    say(byId("alarms"), text ? `Drift alarm: ${text}` : "Drift alarms are over.");
  }
}
