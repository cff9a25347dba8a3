"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const picture = byId("picture"), areas = [];
  const LENGTH = 300, HEIGHT = 90;
  let number = 0, state = null, address = null, dragging = false, methods = "";

  const text = (value, unit, digits = 1) => (value === null || value === undefined ? "–" : `${value.toFixed(digits).replace("-", "−")}${unit}`);
  let refused = ""; // why the last wish was not fulfilled
  const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

  async function wish(what) {
    const answer = await fetch("/wish", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(what) });
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
    const reading = state.reading, course = state.course;
    byId("play").textContent = state.paused || state.ended ? "Play" : "Pause";
    if (course) {
      byId("what").textContent = course.method;
      byId("seek").min = course.first_s; byId("seek").max = course.last_s;
      byId("seek").disabled = byId("method").disabled = !course.free;
      const offered = JSON.stringify(course.methods);
      if (methods !== offered) {
        methods = offered;
        byId("method").replaceChildren(...course.methods.map((name) => { const made = document.createElement("option"); made.textContent = made.value = name; return made; }));
      }
      if (document.activeElement !== byId("method")) byId("method").value = course.method;
    }
    if (!refused) say(state.waiting ? "The model looks at what came before …" : state.ended ? "The end of the drive." : "");
    if (!reading) return;
    if (!dragging && !state.waiting) byId("seek").value = reading.time_s;
    byId("seek").setAttribute("aria-valuetext", `${reading.time_s.toFixed(2)} s`);
    byId("time").textContent = text(reading.time_s, " s", 2);
    byId("frame").textContent = reading.frame;
    byId("predicted").textContent = text(reading.predicted_deg, "°");
    byId("truth").textContent = text(reading.truth_deg, "°");
    byId("area").textContent = text(reading.area, "", 0);
    byId("mean").textContent = text(reading.mean_area, "", 0) + (reading.half_width === null ? "" : ` ± ${reading.half_width.toFixed(0)}`);
    byId("random").textContent = text(reading.random_area, "", 0);
    const last = areas[areas.length - 1];
    if (last && last.method !== course.method) areas.length = 0;
    if (reading.area !== null && (!last || last.frame !== reading.frame)) areas.push({ frame: reading.frame, area: reading.area, method: course.method });
    if (areas.length > LENGTH) areas.shift();
    chart(reading.random_area);
  }
  function chart(random) {
    const high = Math.max(random || 0, ...areas.map((each) => each.area), 1e-9) * 1.08, y = (value) => HEIGHT * (1 - value / high);
    const line = byId("history").querySelector("line"), at = random === null ? -9 : y(random);
    byId("history").querySelector("polyline").setAttribute("points", areas.map((each, x) => `${x},${y(each.area).toFixed(1)}`).join(" "));
    line.setAttribute("y1", at); line.setAttribute("y2", at);
  }
  const toggle = () => wish({ do: state && (state.paused || state.ended) ? "play" : "pause" });
  const step = () => wish({ do: "step" });
  byId("play").addEventListener("click", toggle);
  byId("step").addEventListener("click", step);
  byId("seek").addEventListener("input", () => { dragging = true; });
  byId("seek").addEventListener("change", () => { dragging = false; wish({ do: "seek", at_s: Number(byId("seek").value) }); });
  byId("method").addEventListener("change", () => wish({ do: "method", method: byId("method").value }));
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("button, select, input") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " ") { event.preventDefault(); toggle(); }
    if (event.key === "ArrowRight") { event.preventDefault(); step(); }
  });
  watch();
})();
