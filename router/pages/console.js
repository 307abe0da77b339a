// Looks at the gateway once a second while the page is visible, and hands on what it says.

import { byId, say } from "./dom.js";
import { Drift } from "./drift.js";
import { Frames } from "./frames.js";
import { Frontier } from "./frontier.js";
import { Problem, Unreachable, ask, followWithKey, hasKey, setKey } from "./gateway.js";
import { History } from "./history.js";
import { Tiles, pointInForce } from "./tiles.js";
import { Traffic } from "./traffic.js";
import { Try } from "./try.js";

const EVERY_MS = 1000;
const SHARES_S = 10; // answers by plan are those of the last so many seconds
const history = new History();
const [frontier, tiles, traffic, drift, frames, trial] = [new Frontier(), new Tiles(), new Traffic(), new Drift(), new Frames(), new Try()];
const narrow = matchMedia("(max-width: 60rem)");
let told = null; // the frontier as the gateway told it
let timer = 0;
let looking = false;

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(byId("key").value);
  look();
});
byId("key-forget").addEventListener("click", () => { setKey(""); byId("key").value = ""; told = null; look(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
followWithKey(byId("api"));
narrow.addEventListener("change", settle);
settle();
look();

function state(text, kind = "") {
  say(byId("state"), text);
  byId("state").className = kind;
}

// Where there is one column, an image to try comes before the many frames of others.
function settle() {
  byId(narrow.matches ? "end" : "left").append(byId("frames-panel"));
}

async function look() {
  if (looking) return;
  looking = true;
  clearTimeout(timer);
  const began = performance.now();
  const again = await show().then(() => true, failed);
  looking = false;
  // Nobody sees a page in the background: it asks again when it is looked at.
  if (again && !document.hidden) timer = setTimeout(look, Math.max(50, EVERY_MS - (performance.now() - began)));
}

async function show() {
  const now = await ask("console/state");
  if (told?.manifest !== now.manifest) await learn();
  watching(true);
  history.add(now);
  frontier.move(now.plan, history.last(SHARES_S)?.shares ?? new Map());
  tiles.show(history, frontier, pointInForce(now, frontier, told.home));
  traffic.show(history);
  drift.show(now, frontier);
  state(now.ready ? "Connected" : "Connected; the gateway is not ready", now.ready ? "good" : "bad");
  await frames.show(now);
}

// Takes over another frontier: the first, or one that was published meanwhile.
async function learn() {
  told = await ask("console/frontier");
  frontier.show(told);
  trial.offer(told.plotted.flatMap(({ points }) => points));
  say(byId("about"), `Paretogate ${told.release}, manifest ${told.manifest.slice(0, 12)}`);
}

// Returns whether to look again by itself.
async function failed(error) {
  document.body.classList.add("stale");
  if (error instanceof Unreachable) {
    state("The gateway does not answer; trying again", "bad");
    return true;
  }
  if (!(error instanceof Problem)) throw error;
  if (error.status === 401 || (error.status === 403 && hasKey())) {
    state(hasKey() ? "Another key is needed" : "A key is needed", "bad");
    watching(false, hasKey() ? error.message : "");
    await offerPoints();
    return false;
  }
  state(error.message, "bad");
  return error.status !== 403;
}

// Shows what there is to watch, or asks for a key.
function watching(allowed, why = "") {
  document.body.classList.remove("stale");
  document.body.classList.toggle("unwatched", !allowed);
  byId("key-panel").hidden = allowed && !hasKey();
  byId("key-form").hidden = allowed;
  byId("key-settled").hidden = !hasKey();
  say(byId("key-why"), why);
}

// A key that may not watch may still try images.
async function offerPoints() {
  if (!hasKey()) return;
  const points = await ask("v1/operating-points").catch(() => null);
  if (points) trial.offer(points.operating_points.map(({ name }) => name));
}
