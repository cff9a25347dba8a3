"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const video = byId("video"), charts = byId("charts"), stage = byId("stage");
  const SVG = "http://www.w3.org/2000/svg";
  const HEIGHT = 128, LEFT = 46, RIGHT = 10, TOP = 8, BOTTOM = 18;

  // What is chosen: everything below is drawn from this.
  const state = { result: 0, drive: 0, board: 0, method: "", row: 0 };
  let drawn = null; // the charts as they stand: scales and cursors
  let loaded = null; // which video the element plays

  const result = () => data.results[state.result];
  const drive = () => result().drives[state.drive];
  const board = () => result().boards[state.board];
  // A control's line looks the same everywhere, whichever others are drawn.
  const dashes = (name) => `control-${result().controls.indexOf(name)}`;
  const hasValues = () => result().drives.some((each) => Object.values(each.values[board().key] || {}).some((values) => known(values).length));
  const source = () => (drive() && drive().video !== null ? data.videos[drive().video] : null);

  function element(tag, attributes = {}, text = null) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== null) made.textContent = text;
    return made;
  }
  function shape(tag, attributes, text = null) {
    const made = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    if (text !== null) made.textContent = text;
    return made;
  }
  function number(value, digits = 3) {
    if (value === null || value === undefined) return "–";
    const whole = Math.abs(value) >= 10 ** digits - 0.5;
    return String(whole ? Math.round(value) : Number(value.toPrecision(digits))).replace("-", "−");
  }
  const known = (values) => values.filter((value) => value !== null);
  const place = (at, across) => (across === "s" ? `${at.toFixed(2)} s` : `${at + 1}`);

  // ---- scales -------------------------------------------------------------------------------------
  function ticks(low, high, most) {
    const rough = (high - low) / most, power = 10 ** Math.floor(Math.log10(rough));
    let step = [1, 2, 5, 10].map((times) => times * power).find((each) => each >= rough * 0.999);
    const multiples = () => {
      const found = [];
      for (let n = Math.ceil(low / step - 1e-9); n <= high / step + 1e-9; n++) found.push(Number((n * step).toPrecision(12)));
      return found;
    };
    while (multiples().length < 2) step /= 2; // One number alone tells no scale.
    return multiples();
  }
  // Below the charts: seconds, or images, which are counted from 1 and have nothing between them.
  function moments(first, last, most) {
    if (last - first < 1e-6) return [first];
    if (drive().across === "s") return ticks(first, last, most);
    const step = Math.max(1, Math.ceil((last - first) / most)), found = [];
    for (let at = 0; at <= last; at += step) found.push(at);
    return found;
  }
  function range(series, fromZero) {
    let low = fromZero ? 0 : Infinity, high = -Infinity;
    for (const values of series) for (const value of values) if (value !== null) { low = Math.min(low, value); high = Math.max(high, value); }
    if (!(high > -Infinity)) return [0, 1];
    // A difference of rounding is none: between its ends lies no round number.
    if (high - low <= 1e-9 * Math.abs(high)) { high = low + (Math.abs(low) || 1) * 0.1; }
    return [low, high + (high - low) * 0.04];
  }

  // One line; it breaks at unknown values and at holes in the recording. Where there are more frames than
  // pixels, each pixel keeps its lowest and highest value, so that no peak is lost.
  function line(values, across, x, y) {
    const wide = values.length > 2 * (x(across[across.length - 1]) - x(across[0]));
    const parts = [];
    let open = false, column = null, segment = null;
    const flush = () => {
      if (!column) return;
      const ends = column.first < column.last ? [column.lowest, column.highest] : [column.highest, column.lowest];
      for (const value of ends) { parts.push(`${open ? "L" : "M"}${column.x.toFixed(1)} ${y(value).toFixed(1)}`); open = true; }
      column = null;
    };
    values.forEach((value, row) => {
      const now = drive().segment[row];
      if (value === null || (segment !== null && now !== segment)) { flush(); open = false; }
      segment = now;
      if (value === null) return;
      const at = x(across[row]);
      if (!wide) { parts.push(`${open ? "L" : "M"}${at.toFixed(1)} ${y(value).toFixed(1)}`); open = true; return; }
      if (column && Math.round(at) !== Math.round(column.x)) flush();
      if (!column) column = { x: at, lowest: value, highest: value, first: value, last: value };
      column.lowest = Math.min(column.lowest, value); column.highest = Math.max(column.highest, value); column.last = value;
    });
    flush();
    return parts.join("");
  }

  // ---- charts -------------------------------------------------------------------------------------
  function panels() {
    const now = drive(), unit = result().unit, found = [];
    if (now.prediction) {
      const lines = [{ name: "model", style: "c-own", values: now.prediction }];
      if (now.truth) lines.unshift({ name: "truth", style: "c-truth", values: now.truth });
      found.push({ title: "Output", unit, lines });
    }
    if (now.error) found.push({ title: "Error", unit, fromZero: true, lines: [{ name: "of the model", style: "c-error", values: now.error }] });
    const scored = now.values[board().key];
    if (scored && hasValues()) {
      const lines = result().controls
        .filter((name) => scored[name] && name !== state.method)
        .map((name) => ({ name, style: `c-${dashes(name)} dash`, values: scored[name] }));
      if (scored[state.method]) lines.push({ name: state.method, style: "c-own", values: scored[state.method] });
      found.push({ title: `Faithfulness: ${board().name}`, unit: `${board().unit}, ${board().faithful === "high" ? "higher" : "lower"} is more faithful`, lines });
    }
    return found;
  }

  function draw() {
    const now = drive();
    charts.replaceChildren();
    drawn = null;
    if (!now) return;
    const width = Math.max(280, charts.clientWidth), across = now.at;
    const first = across[0], last = Math.max(across[across.length - 1], first + 1e-9);
    const x = (at) => LEFT + ((width - LEFT - RIGHT) * (at - first)) / (last - first);
    const list = panels();
    drawn = { width, x, first, last, panels: list.map((each, at) => panel(each, { width, x, across, first, last, bottom: at === list.length - 1 })) };
    charts.replaceChildren(...drawn.panels.map((each) => each.root));
    charts.setAttribute("aria-valuemax", String(across.length - 1));
    mark();
  }

  function panel(about, frame) {
    const { width, x, across, first, last, bottom } = frame;
    const root = element("div", { class: "chart" }), head = element("header");
    head.append(element("b", {}, about.title), element("span", { class: "unit" }, about.unit));
    const [low, high] = range(about.lines.map((each) => each.values), about.fromZero);
    const y = (value) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - (value - low) / (high - low));
    const svg = shape("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, "aria-hidden": "true" });
    for (const at of ticks(low, high, 4)) {
      svg.append(shape("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: y(at), y2: y(at) }));
      svg.append(shape("text", { x: LEFT - 7, y: y(at) + 4, "text-anchor": "end" }, number(at)));
    }
    if (bottom) for (const at of moments(first, last, Math.max(2, Math.floor(width / 110)))) {
      svg.append(shape("text", { x: x(at), y: HEIGHT - 2, "text-anchor": x(at) > width - 30 ? "end" : "middle" }, drive().across === "s" ? `${number(at)} s` : `image ${at + 1}`));
    }
    const cursor = shape("line", { class: "cursor", y1: TOP - 4, y2: HEIGHT - BOTTOM });
    const readers = about.lines.map((each) => {
      svg.append(shape("path", { class: each.style, d: line(each.values, across, x, y) }));
      const dot = shape("circle", { class: each.style.split(" ")[0], r: 3.6 });
      const key = element("span", { class: `key ${each.style}` }, `${each.name} `), reading = element("span", { class: "reading" });
      key.append(reading);
      head.append(key);
      return { values: each.values, name: each.name, dot, reading };
    });
    svg.append(cursor, ...readers.map((each) => each.dot));
    root.append(head, svg);
    return { root, svg, cursor, readers, y };
  }

  // Puts the cursor, the numbers and what assistive technology hears where the row is.
  function mark() {
    const now = drive();
    if (!drawn || !now) return;
    const at = now.at[state.row], said = [];
    for (const each of drawn.panels) {
      each.cursor.setAttribute("x1", drawn.x(at)); each.cursor.setAttribute("x2", drawn.x(at));
      for (const reader of each.readers) {
        const value = reader.values[state.row];
        reader.reading.textContent = number(value, 3);
        said.push(`${reader.name} ${number(value, 3)}`);
        reader.dot.style.display = value === null ? "none" : "";
        if (value !== null) { reader.dot.setAttribute("cx", drawn.x(at)); reader.dot.setAttribute("cy", each.y(value)); }
      }
    }
    byId("clock").textContent = `${place(at, now.across)} · ${now.names[state.row]}`;
    explain();
    charts.setAttribute("aria-valuenow", String(state.row));
    charts.setAttribute("aria-valuetext", `${place(at, now.across)}, ${now.names[state.row]}: ${said.join(", ")}`);
  }

  // ---- video --------------------------------------------------------------------------------------
  // The bytes become a blob: browsers seek in it at once, and some refuse long data addresses for video.
  function load() {
    const wanted = drive() ? drive().video : null;
    stage.classList.toggle("blind", wanted === null);
    if (wanted === loaded) return;
    video.pause();
    if (loaded !== null && video.src.startsWith("blob:")) URL.revokeObjectURL(video.src);
    loaded = wanted;
    if (wanted === null) { video.removeAttribute("src"); return; }
    const embedded = byId(`video-${wanted}`);
    video.src = embedded ? URL.createObjectURL(unpack(embedded.textContent)) : encodeURIComponent(data.videos[wanted].file);
    video.onloadedmetadata = () => { video.style.aspectRatio = `${video.videoWidth} / ${video.videoHeight}`; seek(); };
  }
  function unpack(text) {
    const bytes = atob(text), packed = new Uint8Array(bytes.length);
    for (let at = 0; at < bytes.length; at++) packed[at] = bytes.charCodeAt(at);
    return new Blob([packed], { type: "video/mp4" });
  }
  function explain() {
    const shown = source(), note = byId("screen-note");
    if (!shown) { note.textContent = "There is no video of this drive; the charts follow the keys and the pointer all the same."; return; }
    if (drive().pictures[state.row] === null) { note.textContent = "The video does not show this frame."; return; }
    note.textContent = shown.method === state.method ? "" : `The picture shows ${shown.method}, the charts ${state.method}.`;
  }
  // When a picture begins: at its own time where the source's rate varies.
  function begins(shown, picture) {
    if (shown.starts === null) return picture / shown.rate;
    return picture < shown.starts.length ? shown.starts[picture] : Infinity;
  }
  function seek() {
    const shown = source(), picture = shown && drive().pictures[state.row];
    if (!shown || picture === null || picture === undefined) return;
    // The middle of the picture's time: rounding can then not show its neighbour.
    const from = begins(shown, picture);
    video.currentTime = from + 0.5 * Math.min(begins(shown, picture + 1) - from, 1 / shown.rate);
  }
  // The rows that the video shows, in its order; a clip shows a part of them.
  function filmed() {
    const pictures = drive().pictures;
    return pictures.map((picture, row) => [row, picture]).filter(([, picture]) => picture !== null);
  }
  // The row whose picture is on the screen, or the last one before it.
  function rowAt(seconds) {
    const rows = filmed(), shown = source();
    let low = 0, high = rows.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (begins(shown, rows[middle][1]) <= seconds + 1e-3 / shown.rate) low = middle; else high = middle - 1;
    }
    return rows[low][0];
  }
  function follow(seconds) {
    if (!source() || video.seeking) return;
    state.row = rowAt(seconds);
    mark();
  }
  function onEachPicture() {
    if ("requestVideoFrameCallback" in HTMLVideoElement.prototype) {
      const step = (now, about) => { if (!video.paused) follow(about.mediaTime); video.requestVideoFrameCallback(step); };
      video.requestVideoFrameCallback(step);
    } else {
      video.addEventListener("timeupdate", () => { if (!video.paused) follow(video.currentTime); });
    }
  }

  // Without a video the cursor itself plays, at the speed of the drive.
  let timer = null;
  const playing = () => (source() ? !video.paused : timer !== null);
  function toggle() {
    if (playing()) { pause(); return; }
    if (source()) { video.playbackRate = Number(byId("speed").value); video.play(); return; }
    const now = drive(), begun = performance.now(), from = now.at[state.row] >= now.at[now.at.length - 1] ? now.at[0] : now.at[state.row];
    const rate = Number(byId("speed").value) * (now.across === "s" ? 1 : 4);
    timer = setInterval(() => {
      const at = from + (rate * (performance.now() - begun)) / 1000;
      go(nearest(at), false);
      if (state.row === now.at.length - 1) pause();
    }, 50);
    sayPlaying();
  }
  function pause() {
    video.pause();
    if (timer !== null) { clearInterval(timer); timer = null; }
    sayPlaying();
  }
  function sayPlaying() {
    byId("play").textContent = playing() ? "❚❚" : "▶";
    byId("play").setAttribute("aria-label", playing() ? "Pause" : "Play");
  }

  // ---- moving -------------------------------------------------------------------------------------
  function nearest(at) {
    const across = drive().at;
    let low = 0, high = across.length - 1;
    while (low < high) { const middle = (low + high) >> 1; if (across[middle] < at) low = middle + 1; else high = middle; }
    return low > 0 && at - across[low - 1] < across[low] - at ? low - 1 : low;
  }
  function go(row, alsoPause = true) {
    if (!drive()) return;
    if (alsoPause) pause();
    state.row = Math.max(0, Math.min(drive().at.length - 1, row));
    mark();
    if (alsoPause) seek();
  }
  function onKey(event) {
    const inControl = event.target.closest("select, button, a, summary, input, textarea");
    if (event.ctrlKey || event.metaKey || event.altKey || !drive()) return;
    if (event.key === " " && !inControl) { event.preventDefault(); toggle(); return; }
    if (inControl && inControl.tagName === "SELECT") return;
    const now = drive(), second = event.shiftKey ? nearest(now.at[state.row] + (event.key === "ArrowLeft" ? -1 : 1)) : null;
    const onCharts = event.target === charts;
    const moves = { ArrowLeft: second ?? state.row - 1, ArrowRight: second ?? state.row + 1 };
    if (onCharts) Object.assign(moves, { ArrowDown: state.row - 1, ArrowUp: state.row + 1, Home: 0, End: now.at.length - 1, PageDown: nearest(now.at[state.row] - 5), PageUp: nearest(now.at[state.row] + 5) });
    if (!(event.key in moves) || event.target.closest(".scroll")) return;
    event.preventDefault();
    go(moves[event.key]);
  }
  function onPointer(event) {
    if (!drawn || (event.type === "pointermove" && !(event.buttons & 1))) return;
    if (event.type === "pointerdown") { charts.setPointerCapture(event.pointerId); charts.focus({ preventScroll: true }); }
    const box = drawn.panels[0].svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * drawn.width;
    go(nearest(drawn.first + ((at - LEFT) / (drawn.width - LEFT - RIGHT)) * (drawn.last - drawn.first)));
  }

  // ---- frames -------------------------------------------------------------------------------------
  function gallery() {
    const found = (result().picks[board().key] || {})[state.method] || [];
    byId("frames-lead").textContent = found.length
      ? `${state.method} by ${board().name}${board().corrected ? ", less what the unedited frame has already" : ""}: where it is most and least faithful, from different moments. One frame proves nothing.${borrowed(found)}`
      : hasValues() ? `No frames are picked for ${state.method}: choose a method that is no control.`
      : `${board().name} is a value of all frames together: no frame has one by itself, so none is drawn above or picked here.`;
    byId("gallery").replaceChildren(...["best", "worst"].map((kind) => {
      const cards = found.filter((each) => each.kind === kind);
      const row = element("div", { class: "row-of" });
      if (!cards.length) return row;
      const list = element("div", { class: "cards" });
      list.append(...cards.map(card));
      row.append(element("h3", {}, kind === "best" ? "Most faithful" : "Least faithful"), list);
      return row;
    }));
  }
  // Whose evidence the pictures show, where it is another method's.
  function borrowed(found) {
    const shown = [...new Set(found.filter((each) => each.still !== null).map((each) => data.videos[each.video].method))].filter((name) => name !== state.method);
    if (!shown.length) return "";
    return ` The drive's pictures show ${shown.join(", ")}${found.some((each) => each.map !== null) ? `, the dark ones ${state.method}` : ""}.`;
  }
  function card(pick) {
    const of = result().drives[pick.drive];
    const made = element("button", { type: "button", class: "card" }), still = pick.still === null ? "" : data.stills[pick.still];
    if (still) {
      const shows = data.videos[pick.video].method;
      made.append(element("img", { src: `data:image/jpeg;base64,${still}`, alt: `${of.names[pick.row]} with the evidence of ${shows}` }));
    }
    if (pick.map !== null) {
      made.append(element("img", { src: `data:image/jpeg;base64,${data.maps[pick.map]}`, alt: `The map of ${state.method} for ${of.names[pick.row]}` }));
    }
    const text = element("span", { class: "text" });
    text.append(element("b", {}, `${number(pick.value, 4)}`), ` ${board().unit}`);
    const moment = [place(of.at[pick.row], of.across), of.names[pick.row]];
    if (result().drives.length > 1) moment.unshift(of.name);
    if (of.error && of.error[pick.row] !== null) moment.push(`model's error ${number(of.error[pick.row], 3)} ${result().unit}`);
    text.append(element("span", {}, moment.join(" · ")));
    made.append(text);
    const picture = pick.curves[state.method] && curves(pick.curves);
    if (picture) made.append(picture);
    made.addEventListener("click", () => {
      if (state.drive !== pick.drive) { state.drive = pick.drive; byId("drive-choice").value = String(pick.drive); load(); draw(); explain(); }
      go(pick.row);
      byId("drive").scrollIntoView();
      charts.focus({ preventScroll: true });
    });
    return made;
  }
  function curves(lines) {
    const width = 280, height = 136, left = 40, top = 24, { fractions, height: shows, over } = board().curve;
    const own = lines[state.method], others = Object.keys(lines).filter((name) => name !== state.method);
    if (!fractions.length || known(own).length !== fractions.length) return null;
    const [low, high] = range(Object.values(lines), false), last = fractions[fractions.length - 1];
    const x = (at) => left + ((width - left - 8) * (at - fractions[0])) / (last - fractions[0]);
    const y = (value) => top + (height - top - 20) * (1 - (value - low) / (high - low));
    const svg = shape("svg", { class: "curves", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Curve of ${shows}, from ${number(own[0], 3)} to ${number(own[own.length - 1], 3)}` });
    for (const at of ticks(low, high, 3)) {
      svg.append(shape("line", { class: "grid", x1: left, x2: width - 8, y1: y(at), y2: y(at) }));
      svg.append(shape("text", { x: left - 6, y: y(at) + 4, "text-anchor": "end" }, number(at)));
    }
    svg.append(shape("text", { x: left, y: height - 4 }, `${number(100 * fractions[0])} %`), shape("text", { x: width - 8, y: height - 4, "text-anchor": "end" }, `${number(100 * last)} % of ${over}`), shape("text", { x: 6, y: 12 }, shows));
    const points = (values) => values.map((value, at) => (value === null ? "" : `${x(fractions[at]).toFixed(1)},${y(value).toFixed(1)}`)).join(" ");
    others.forEach((name) => svg.append(shape("polyline", { class: `curve ${dashes(name)}`, points: points(lines[name]) })));
    svg.append(shape("polyline", { class: "curve own", points: points(own) }));
    return svg;
  }

  // ---- choices ------------------------------------------------------------------------------------
  function fill(select, options, chosen) {
    select.replaceChildren(...options.map(([value, text]) => element("option", { value }, text)));
    select.value = String(chosen);
  }
  function choose(change) {
    pause();
    change();
    const of = result(), scored = of.methods.filter((name) => of.drives.some((each) => each.values[board().key] && each.values[board().key][name]));
    if (!scored.includes(state.method)) state.method = scored.find((name) => !of.controls.includes(name)) || scored[0] || "";
    fill(byId("result"), data.results.map((each, at) => [at, each.label]), state.result);
    fill(byId("drive-choice"), of.drives.map((each, at) => [at, each.name]), state.drive);
    fill(byId("board"), of.boards.map((each, at) => [at, each.name]), state.board);
    fill(byId("method"), scored.map((name) => [name, name]), state.method);
    byId("for-result").hidden = data.results.length < 2;
    byId("for-drive").hidden = of.drives.length < 2;
    if (source() && drive().pictures[state.row] === null) state.row = filmed()[0][0];
    load(); draw(); explain(); gallery();
  }
  function theme() {
    const root = document.documentElement, order = ["", "light", "dark"];
    const next = order[(order.indexOf(root.dataset.theme || "") + 1) % 3];
    if (next) root.dataset.theme = next; else delete root.dataset.theme;
    byId("theme").setAttribute("aria-label", `Colours: ${next || "as the system"}`);
    byId("theme").textContent = { "": "◐", light: "○", dark: "●" }[next];
  }

  const firstWithVideo = data.results.findIndex((each) => each.drives.some((one) => one.video !== null));
  const start = Math.max(0, firstWithVideo);
  const withVideo = (at) => Math.max(0, data.results[at].drives.findIndex((each) => each.video !== null));
  byId("result").addEventListener("change", (event) => choose(() => { const at = Number(event.target.value); Object.assign(state, { result: at, drive: withVideo(at), board: 0, method: "", row: 0 }); }));
  byId("drive-choice").addEventListener("change", (event) => choose(() => { state.drive = Number(event.target.value); state.row = 0; }));
  byId("board").addEventListener("change", (event) => choose(() => { state.board = Number(event.target.value); }));
  byId("method").addEventListener("change", (event) => choose(() => { state.method = event.target.value; }));
  byId("choices").addEventListener("submit", (event) => event.preventDefault());
  byId("speed").addEventListener("change", () => { video.playbackRate = Number(byId("speed").value); });
  byId("play").addEventListener("click", toggle);
  byId("back").addEventListener("click", () => go(state.row - 1));
  byId("forward").addEventListener("click", () => go(state.row + 1));
  byId("theme").addEventListener("click", theme);
  video.addEventListener("click", toggle);
  for (const name of ["play", "pause", "ended"]) video.addEventListener(name, sayPlaying);
  for (const name of ["pointerdown", "pointermove"]) charts.addEventListener(name, onPointer);
  document.addEventListener("keydown", onKey);
  // On paper nothing is folded away.
  let folded = [];
  window.addEventListener("beforeprint", () => { folded = [...document.querySelectorAll("details:not([open])")]; for (const each of folded) each.open = true; });
  window.addEventListener("afterprint", () => { for (const each of folded) each.open = false; });
  let pending = null;
  new ResizeObserver(() => { if (drawn && charts.clientWidth !== drawn.width && !pending) pending = requestAnimationFrame(() => { pending = null; draw(); }); }).observe(charts);
  onEachPicture();
  choose(() => Object.assign(state, { result: start, drive: withVideo(start) }));
})();
