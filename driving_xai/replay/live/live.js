"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const picture = byId("picture"), WIDTH = 1000, HEIGHT = 90, BINS = 500;
  let number = 0, state = null, address = null, dragging = false, methods = "", drawn = true, polling = null, wanted = null;
  let history = { method: null, sums: new Float64Array(BINS), counts: new Uint32Array(BINS), frame: null };

  const text = (value, unit, digits = 1) => (value === null || value === undefined ? "–" : `${value.toFixed(digits).replace("-", "−")}${unit}`);
  let refused = ""; // why the last request was not met
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

  async function ask(what) {
    let reason = "";
    try {
      const answer = await fetch("/request", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(what) });
      if (!answer.ok) reason = await answer.text();
    } catch (error) { reason = "No connection to the replay; trying again."; }
    refused = reason;
    if (reason) { wanted = null; stale(); }
    say(refused);
    return !reason;
  }
  function say(words) { byId("note").textContent = words; }

  // One request at a time, and the next only when this picture stands: a slow line gets fewer pictures, not old ones.
  async function watch() {
    let lost = false;
    for (;;) {
      const plain = !drawn;
      polling = new AbortController();
      try {
        const answer = await fetch(`/frame?after=${number}&drawn=${plain ? 0 : 1}`, { signal: polling.signal });
        if (answer.status === 410) { say("The replay has ended."); return; }
        if (answer.status === 403) { say("Open the address that the replay printed."); return; }
        if (!answer.ok) throw new Error(`${answer.status}`);
        if (lost) { lost = false; say(""); }
        if (answer.status === 204) continue;
        const next = JSON.parse(answer.headers.get("X-Replay"));
        await draw(await answer.blob(), next, plain);
      } catch (error) {
        if (error.name === "AbortError") continue;
        lost = true; number = 0;
        say(state && state.ended ? "The replay has ended." : "No connection to the replay; trying again.");
        await pause(1000);
      }
    }
  }
  // The picture and its words change together.
  async function draw(blob, next, plain) {
    const made = URL.createObjectURL(blob);
    picture.src = made;
    try { await picture.decode(); } finally { if (address) URL.revokeObjectURL(address); address = made; }
    state = next; number = next.number;
    read(plain);
    brush.passed(state);
  }
  // What is shown is old while another place or method is on its way: it is dimmed, and keeps its own name.
  function stale() {
    const old = wanted !== null || (state !== null && state.waiting);
    byId("stage").classList.toggle("stale", old);
    byId("loading").hidden = !old || brush.open;
    const method = wanted || (state && state.wanted) || (state && state.playback && state.stats && state.playback.method !== state.stats.method ? state.playback.method : null);
    byId("loading").textContent = method ? `Computing ${method} …` : "The model looks at what came before …";
  }
  function read(plain) {
    const stats = state.stats, playback = state.playback;
    byId("play").textContent = state.paused || state.ended ? "Play" : "Pause";
    if (wanted !== null && (!stats || stats.method === wanted) && !state.waiting) wanted = null;
    if (playback) {
      byId("predicted-name").textContent = playback.legend.predicted; byId("truth-name").textContent = playback.legend.truth;
      byId("areas").textContent = playback.legend.areas;
      byId("seek").min = playback.first_s; byId("seek").max = playback.last_s;
      for (const id of ["seek", "method", "speed", "back"]) byId(id).disabled = !playback.free;
      const offered = JSON.stringify(playback.methods);
      if (methods !== offered) {
        methods = offered;
        byId("method").replaceChildren(...playback.methods.map((name) => { const made = document.createElement("option"); made.textContent = made.value = name; return made; }));
      }
      if (document.activeElement !== byId("method")) byId("method").value = wanted || state.wanted || playback.method;
      if (document.activeElement !== byId("speed")) byId("speed").value = String(state.speed);
    }
    byId("brush").disabled = !state.brush;
    stale();
    if (!refused) say(state.ended && !state.waiting ? "The end of the drive." : "");
    if (!stats) return;
    byId("what").textContent = plain ? "the frame alone" : stats.method;
    byId("when").textContent = text(stats.time_s, " s", 2);
    if (!dragging && !state.waiting) byId("seek").value = stats.time_s;
    byId("seek").setAttribute("aria-valuetext", `${stats.time_s.toFixed(2)} s`);
    byId("time").textContent = text(stats.time_s, " s", 2);
    byId("frame").textContent = stats.frame;
    byId("verdict").textContent = stats.verdict === null ? "" : stats.verdict;
    byId("predicted").textContent = stats.predicted;
    byId("truth").textContent = stats.truth === null ? "–" : stats.truth;
    const digits = playback.legend.decimals;
    byId("area").textContent = text(stats.area, "", digits);
    byId("mean").textContent = text(stats.mean_area, "", digits) + (stats.half_width === null ? "" : ` ± ${stats.half_width.toFixed(digits)}`);
    byId("random").textContent = text(stats.random_area, "", digits);
    keep(stats, playback);
    chart(stats, playback);
  }
  // The history is as long as the drive, in as many places as a screen can show.
  const share = (at_s, playback) => Math.min(1, Math.max(0, (at_s - playback.first_s) / Math.max(playback.last_s - playback.first_s, 1e-9)));
  function keep(stats, playback) {
    if (history.method !== stats.method) history = { method: stats.method, sums: new Float64Array(BINS), counts: new Uint32Array(BINS), frame: null };
    if (stats.area === null || history.frame === stats.frame) return;
    const bin = Math.min(BINS - 1, Math.floor(share(stats.time_s, playback) * BINS));
    history.sums[bin] += stats.area; history.counts[bin] += 1; history.frame = stats.frame;
  }
  function chart(stats, playback) {
    const points = [];
    for (let bin = 0; bin < BINS; bin += 1) if (history.counts[bin]) points.push([bin, history.sums[bin] / history.counts[bin]]);
    const high = Math.max(stats.random_area || 0, ...points.map((each) => each[1]), 1e-9) * 1.08, y = (value) => (HEIGHT * (1 - value / high)).toFixed(1);
    const frames = Math.max(1, (playback.last_s - playback.first_s) * playback.frame_rate), gap = Math.max(2, (3 * BINS) / frames);
    let before = -Infinity, line = "";
    for (const [bin, value] of points) { line += `${bin - before > gap ? "M" : "L"}${((bin + 0.5) * WIDTH) / BINS},${y(value)}`; before = bin; }
    byId("curve").setAttribute("d", line);
    const random = stats.random_area === null ? -9 : y(stats.random_area), here = share(stats.time_s, playback) * WIDTH;
    byId("random-line").setAttribute("y1", random); byId("random-line").setAttribute("y2", random);
    byId("here").setAttribute("x1", here); byId("here").setAttribute("x2", here);
  }
  const brush = makeBrush(byId, { pause: () => ask({ do: "pause" }), state: () => state, changed: stale });
  const toggle = () => { brush.close(); ask({ do: state && (state.paused || state.ended) ? "play" : "pause" }); };
  const step = () => { brush.close(); ask({ do: "step" }); };
  const back = () => { brush.close(); if (!byId("back").disabled) ask({ do: "back" }); };
  function overlay() {
    drawn = !drawn;
    byId("overlay").setAttribute("aria-pressed", drawn);
    number = 0;
    if (polling) polling.abort();
  }
  function faster(by) {
    const speed = byId("speed"), at = Math.min(speed.options.length - 1, Math.max(0, speed.selectedIndex + by));
    if (speed.disabled) return;
    speed.selectedIndex = at; ask({ do: "speed", speed: Number(speed.value) });
  }
  byId("play").addEventListener("click", toggle);
  byId("step").addEventListener("click", step);
  byId("back").addEventListener("click", back);
  byId("overlay").addEventListener("click", overlay);
  byId("brush").addEventListener("click", () => (brush.open ? brush.close() : brush.begin()));
  byId("speed").addEventListener("change", () => ask({ do: "speed", speed: Number(byId("speed").value) }));
  byId("seek").addEventListener("input", () => { dragging = true; });
  byId("seek").addEventListener("change", () => { dragging = false; brush.close(); ask({ do: "seek", at_s: Number(byId("seek").value) }); });
  byId("method").addEventListener("change", () => { wanted = byId("method").value; brush.close(); stale(); ask({ do: "method", method: wanted }); });
  const KEYS = { " ": toggle, ArrowRight: step, ArrowLeft: back, o: overlay, b: () => byId("brush").click(), "+": () => faster(1), "-": () => faster(-1) };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && brush.open) { brush.close(); byId("brush").focus(); return; }
    if (event.target.closest("select, input, canvas") || (event.key === " " && event.target.closest("button"))) return;
    const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (act) { event.preventDefault(); act(); }
  });
  watch();
})();
