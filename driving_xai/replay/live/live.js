"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const picture = byId("picture"), areas = [];
  const LENGTH = 300, HEIGHT = 90;
  let number = 0, state = null, address = null, dragging = false, methods = "";

  const text = (value, unit, digits = 1) => (value === null || value === undefined ? "–" : `${value.toFixed(digits).replace("-", "−")}${unit}`);
  let refused = ""; // why the last request was not met
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

  async function ask(what) {
    const answer = await fetch("/request", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(what) });
    refused = answer.ok ? "" : await answer.text();
    say(refused);
  }
  function say(words) { byId("note").textContent = words; }

  // One request at a time, and the next only when this picture stands: a slow line gets fewer pictures, not old ones.
  async function watch() {
    let lost = false;
    for (;;) {
      try {
        const answer = await fetch(`/frame?after=${number}`);
        if (answer.status === 410) { say("The replay has ended."); return; }
        if (answer.status === 403) { say("Open the address that the replay printed."); return; }
        if (!answer.ok) throw new Error(`${answer.status}`);
        if (lost) { lost = false; say(""); }
        if (answer.status === 204) continue;
        state = JSON.parse(answer.headers.get("X-Replay"));
        number = state.number;
        await draw(await answer.blob());
      } catch (error) {
        lost = true; number = 0;
        say(state && state.ended ? "The replay has ended." : "No connection to the replay; trying again.");
        await pause(1000);
      }
    }
  }
  async function draw(blob) {
    const next = URL.createObjectURL(blob);
    picture.src = next;
    try { await picture.decode(); } finally { if (address) URL.revokeObjectURL(address); address = next; }
    read();
  }
  function read() {
    const stats = state.stats, playback = state.playback;
    byId("play").textContent = state.paused || state.ended ? "Play" : "Pause";
    if (playback) {
      byId("what").textContent = playback.method;
      byId("predicted-name").textContent = playback.legend.predicted; byId("truth-name").textContent = playback.legend.truth;
      byId("areas").textContent = playback.legend.areas;
      byId("seek").min = playback.first_s; byId("seek").max = playback.last_s;
      byId("seek").disabled = byId("method").disabled = !playback.free;
      const offered = JSON.stringify(playback.methods);
      if (methods !== offered) {
        methods = offered;
        byId("method").replaceChildren(...playback.methods.map((name) => { const made = document.createElement("option"); made.textContent = made.value = name; return made; }));
      }
      if (document.activeElement !== byId("method")) byId("method").value = playback.method;
    }
    if (!refused) say(state.waiting ? "The model looks at what came before …" : state.ended ? "The end of the drive." : "");
    if (!stats) return;
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
    const last = areas[areas.length - 1];
    if (last && last.method !== playback.method) areas.length = 0;
    if (stats.area !== null && (!last || last.frame !== stats.frame)) areas.push({ frame: stats.frame, area: stats.area, method: playback.method });
    if (areas.length > LENGTH) areas.shift();
    chart(stats.random_area);
  }
  function chart(random) {
    const high = Math.max(random || 0, ...areas.map((each) => each.area), 1e-9) * 1.08, y = (value) => HEIGHT * (1 - value / high);
    const line = byId("history").querySelector("line"), at = random === null ? -9 : y(random);
    byId("history").querySelector("polyline").setAttribute("points", areas.map((each, x) => `${x},${y(each.area).toFixed(1)}`).join(" "));
    line.setAttribute("y1", at); line.setAttribute("y2", at);
  }
  const toggle = () => ask({ do: state && (state.paused || state.ended) ? "play" : "pause" });
  const step = () => ask({ do: "step" });
  byId("play").addEventListener("click", toggle);
  byId("step").addEventListener("click", step);
  byId("seek").addEventListener("input", () => { dragging = true; });
  byId("seek").addEventListener("change", () => { dragging = false; ask({ do: "seek", at_s: Number(byId("seek").value) }); });
  byId("method").addEventListener("change", () => ask({ do: "method", method: byId("method").value }));
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("button, select, input") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " ") { event.preventDefault(); toggle(); }
    if (event.key === "ArrowRight") { event.preventDefault(); step(); }
  });
  watch();
})();
