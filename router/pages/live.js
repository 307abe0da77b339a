// Sends frames over the WebSocket /v1/stream and draws each answered frame with its boxes.
import { drawBoxes, seen } from "./boxes.js";
import { byId } from "./dom.js";

const picture = byId("picture");
const KEPT = 64; // frames that are remembered until their result comes
const WINDOW_MS = 3000; // over which rates and ages are taken

let running = null; // what is being sent, null when nothing is

byId("camera").addEventListener("click", () => begin(fromCamera));
byId("files").addEventListener("change", (event) => {
  const files = [...event.target.files];
  event.target.value = "";
  if (files.length > 0) begin(() => (files[0].type.startsWith("video/") ? fromVideo(files[0]) : fromImages(files)));
});
byId("stop").addEventListener("click", () => end("Stopped."));
byId("wishes").addEventListener("submit", (event) => event.preventDefault());
byId("key").addEventListener("change", listPoints);
listPoints();

function say(text, bad = false) {
  byId("state").textContent = text;
  byId("state").className = bad ? "bad" : running === null ? "" : "good";
}

async function listPoints() {
  const key = byId("key").value;
  const answer = await fetch("v1/operating-points", { headers: key ? { Authorization: `Bearer ${key}` } : {} });
  if (!answer.ok) return; // with a key alone: points can still be chosen by the gateway
  const points = (await answer.json()).operating_points;
  byId("point").replaceChildren(new Option("in force", ""), ...points.map(({ name }) => new Option(name, name)));
}

// A source draws its present frame when it is asked, and knows how to stop.
async function fromCamera() {
  const stream = await navigator.mediaDevices.getUserMedia({ video: true });
  const video = await playing(Object.assign(document.createElement("video"), { srcObject: stream }));
  return { ...shown(video), stop: () => stream.getTracks().forEach((track) => track.stop()) };
}

async function fromVideo(file) {
  const url = URL.createObjectURL(file);
  const video = await playing(Object.assign(document.createElement("video"), { src: url, loop: true }));
  return { ...shown(video), stop: () => { video.pause(); URL.revokeObjectURL(url); } };
}

async function fromImages(files) {
  let next = 0;
  // As they are, without another loss from encoding.
  return { frame: async () => files[next++ % files.length], stop: () => {} };
}

async function playing(video) {
  video.muted = true;
  video.playsInline = true;
  await video.play();
  return video;
}

function shown(video) {
  const canvas = document.createElement("canvas");
  return {
    frame: () => {
      canvas.width = video.videoWidth;
      canvas.height = video.videoHeight;
      canvas.getContext("2d").drawImage(video, 0, 0);
      return new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.9));
    },
  };
}

function streamUrl() {
  const url = new URL("v1/stream", location.href);
  url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
  for (const [name, id] of [["operating_point", "point"], ["budget_ms", "budget"], ["min_score", "score"], ["reuse_within", "reuse"]]) {
    if (byId(id).value !== "") url.searchParams.set(name, byId(id).value);
  }
  return url;
}

async function begin(choose) {
  end("");
  let source;
  try {
    source = await choose();
  } catch (error) {
    say(`No frames: ${error.message}`, true);
    return;
  }
  const key = byId("key").value;
  // A browser cannot set headers on a socket: the key goes as one of the protocols it offers.
  const socket = new WebSocket(streamUrl(), key ? ["paretogate", `key.${key}`] : ["paretogate"]);
  const run = { source, socket, sent: new Map(), number: 0, timer: 0, results: [], totals: { answered: 0, escalated: 0, reused: 0 } };
  running = run;
  socket.onopen = () => { say("Streaming."); byId("stop").disabled = false; send(run); };
  socket.onmessage = (event) => receive(run, JSON.parse(event.data));
  socket.onclose = (event) => { if (running === run) end(event.reason || "The gateway closed the stream, or refused it.", true); };
}

function end(text, bad = false) {
  const run = running;
  running = null;
  if (run !== null) {
    clearTimeout(run.timer);
    run.socket.close();
    run.source.stop();
    for (const { bitmap } of run.sent.values()) bitmap.close();
  }
  byId("stop").disabled = true;
  if (text) say(text, bad);
}

async function send(run) {
  const began = performance.now();
  // A frame that has not left the browser yet is not followed by another: it would only grow old.
  if (run.socket.bufferedAmount === 0) {
    const frame = await run.source.frame();
    if (running !== run) return;
    if (frame) {
      const bitmap = await seen(frame);
      if (running !== run) return;
      run.sent.set(run.number, { bitmap, at: performance.now() });
      if (run.sent.size > KEPT) forget(run, run.number - KEPT + 1);
      run.number += 1;
      run.socket.send(frame);
    }
  }
  const interval = 1000 / Math.max(1, Number(byId("fps").value) || 15);
  run.timer = setTimeout(send, Math.max(0, interval - (performance.now() - began)), run);
}

function forget(run, before) {
  for (const [number, { bitmap }] of run.sent) {
    if (number < before) { bitmap.close(); run.sent.delete(number); }
  }
}

function receive(run, result) {
  const now = performance.now();
  const sent = run.sent.get(result.number);
  byId("dropped").textContent = `${result.dropped} of ${result.number + 1}`;
  if (result.problem) {
    byId("caption").textContent = `Frame ${result.number}: ${result.problem.title}: ${result.problem.detail}`;
    return;
  }
  const answer = result.answer;
  run.results.push({ now, age: result.age_ms, trip: sent ? now - sent.at : NaN });
  run.results = run.results.filter((one) => now - one.now < WINDOW_MS);
  run.totals.answered += 1;
  if (result.reused) run.totals.reused += 1;
  else if (answer.stages.length > 1) run.totals.escalated += 1;
  if (sent) drawBoxes(picture, sent.bitmap, answer.detections);
  forget(run, result.number);
  const stages = answer.stages.map((stage) => `${stage.variant} ${stage.latency_ms.toFixed(1)} ms`).join(", then ");
  byId("caption").textContent = `Frame ${result.number}, ${answer.operating_point}: ${stages}; ${answer.detections.length} found`
    + (result.reused ? `; the answer of frame ${result.reused.number}, ${result.reused.difference} levels away` : "");
  tell(run);
}

function tell(run) {
  const middle = (values) => values.sort((a, b) => a - b)[Math.floor(values.length / 2)];
  const { answered, escalated, reused } = run.totals;
  const span = run.results.length > 1 ? (run.results.at(-1).now - run.results[0].now) / 1000 : 0;
  byId("rate").textContent = span > 0 ? ((run.results.length - 1) / span).toFixed(1) : "–";
  byId("age").textContent = `${middle(run.results.map((one) => one.age)).toFixed(1)} ms`;
  byId("trip").textContent = `${middle(run.results.map((one) => one.trip)).toFixed(1)} ms`;
  byId("escalated").textContent = `${Math.round((100 * escalated) / Math.max(1, answered - reused))} %`;
  byId("reused").textContent = `${Math.round((100 * reused) / answered)} %`;
}
