"use strict";
// The brush: paints a mask on what the model sees, and asks the replay what the outputs are without it.
function makeBrush(byId, replay) {
  const canvas = byId("paint"), stage = byId("stage"), TOOLS = ["paint", "erase", "region"];
  let sheet = null, mask = null, regions = null, offsets = [], tool = "paint", cursor = null, last = null, busy = false, again = false, edits = 0, coming = null;
  const self = { open: false, begin, close, passed };

  async function begin() {
    const state = replay.state();
    if (!state || !state.brush) return;
    self.open = true;
    byId("brush").setAttribute("aria-pressed", "true");
    byId("numbers").hidden = true; byId("panel").hidden = false;
    if (!state.paused) await replay.pause();
    await take();
    canvas.focus({ preventScroll: true });
  }
  function close() {
    if (!self.open) return;
    self.open = false; sheet = coming = null;
    document.body.style.removeProperty("--tall");
    byId("brush").setAttribute("aria-pressed", "false");
    byId("numbers").hidden = false; byId("panel").hidden = byId("easel").hidden = true;
    replay.changed();
  }
  // The frame that is shown now, clean.
  async function take() {
    const answer = await fetch("/brush").catch(() => null);
    if (!self.open) return;
    if (!answer || !answer.ok) { say(answer ? await answer.text() : "No connection to the replay."); return; }
    const made = await answer.json(), image = new Image();
    image.src = made.regions;
    await image.decode();
    sheet = made;
    canvas.width = made.width; canvas.height = made.height;
    byId("sheet").src = made.image;
    const pen = canvas.getContext("2d", { willReadFrequently: true });
    pen.drawImage(image, 0, 0);
    const values = pen.getImageData(0, 0, made.width, made.height).data;
    regions = Uint8Array.from({ length: made.width * made.height }, (_, at) => values[4 * at]);
    cursor = [made.width >> 1, made.height >> 1];
    byId("easel").hidden = false; byId("fresh").hidden = true;
    document.body.style.setProperty("--tall", `${((100 * made.height) / made.width).toFixed(1)}vw`); // on an upright phone
    byId("size").max = Math.max(4, Math.round(made.height / 2));
    byId("about-brush").textContent = `Frame ${made.frame}, as the model sees it (${made.width}×${made.height}). Paint over a part, or choose regions.`
      + (made.memory ? " The model remembers earlier frames: they stay as they were, only this frame is edited." : "");
    clear();
    replay.changed();
  }
  function say(words) { byId("found").replaceChildren(...[words].flat().map((line) => { const made = document.createElement("p"); made.textContent = line; return made; })); }
  function clear() {
    mask = new Uint8Array(sheet.width * sheet.height); offsets = []; edits += 1;
    byId("effects").hidden = true; byId("shots").replaceChildren(); byId("save").disabled = true; byId("saved").textContent = "";
    say(""); paint();
  }
  // The drive may go on by another viewer's hand: what is painted belongs to its own frame.
  function passed(state) {
    if (!self.open || !sheet || state.picture === sheet.picture) return;
    if (!mask.some(Boolean)) { if (coming !== state.picture) { coming = state.picture; take(); } return; }
    byId("fresh").hidden = false; byId("save").disabled = true;
  }

  // Drawing. The mask is in pixels of the model's input; the canvas shows it, and where the control removes the same area.
  function paint() {
    const pen = canvas.getContext("2d"), { width, height } = sheet, image = pen.createImageData(width, height);
    const colour = getComputedStyle(document.documentElement).getPropertyValue("--paint").trim(), [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
    let box = [width, height, -1, -1];
    for (let at = 0; at < mask.length; at += 1) {
      if (!mask[at]) continue;
      image.data.set([red, green, blue, 150], 4 * at);
      const x = at % width, y = Math.floor(at / width);
      box = [Math.min(box[0], x), Math.min(box[1], y), Math.max(box[2], x), Math.max(box[3], y)];
    }
    pen.putImageData(image, 0, 0);
    pen.lineWidth = Math.max(0.5, width / 400);
    pen.strokeStyle = "rgba(255, 255, 255, 0.4)";
    if (box[2] >= 0) for (const [down, right] of offsets) pen.strokeRect(box[0] + right, box[1] + down, box[2] - box[0] + 1, box[3] - box[1] + 1);
    if (document.activeElement === canvas) {
      pen.strokeStyle = colour;
      pen.beginPath(); pen.arc(cursor[0] + 0.5, cursor[1] + 0.5, tool === "region" ? 1.5 : radius(), 0, 7); pen.stroke();
    }
  }
  const radius = () => Number(byId("size").value) / 2;
  function dab(from, to) {
    const [value, r] = [tool === "erase" ? 0 : 1, radius()], steps = Math.max(1, Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1])));
    for (let step = 0; step <= steps; step += 1) {
      const x0 = from[0] + ((to[0] - from[0]) * step) / steps, y0 = from[1] + ((to[1] - from[1]) * step) / steps;
      for (let y = Math.max(0, Math.floor(y0 - r)); y <= Math.min(sheet.height - 1, y0 + r); y += 1)
        for (let x = Math.max(0, Math.floor(x0 - r)); x <= Math.min(sheet.width - 1, x0 + r); x += 1)
          if ((x - x0) ** 2 + (y - y0) ** 2 <= r * r) mask[y * sheet.width + x] = value;
    }
    changed();
  }
  function region([x, y]) {
    x = Math.round(x); y = Math.round(y);
    if (x < 0 || y < 0 || x >= sheet.width || y >= sheet.height) return;
    const at = y * sheet.width + x, value = mask[at] ? 0 : 1, chosen = regions[at];
    for (let each = 0; each < mask.length; each += 1) if (regions[each] === chosen) mask[each] = value;
    changed();
  }
  function changed() { edits += 1; offsets = []; byId("saved").textContent = ""; byId("save").disabled = true; paint(); send(); }

  // Asking. One question at a time; what was painted meanwhile is asked next.
  async function send(save = false) {
    if (busy) { again = true; return; }
    if (!mask.some(Boolean)) { clear(); return; }
    busy = true; again = false;
    const asked = edits, about = sheet;
    const slow = setTimeout(() => { if (sheet === about) say("Asking the model."); }, 500);
    const body = { picture: sheet.picture, mask: packed(), save, note: byId("words").value };
    try {
      const answer = await fetch("/brush", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
      const found = answer.ok ? await answer.json() : null, reason = found ? "" : await answer.text();
      if (sheet !== about) return;
      if (found) show(found, asked === edits);
      else say(reason);
    } catch (error) {
      if (self.open) say("No connection to the replay.");
    } finally {
      clearTimeout(slow);
      busy = false;
      if (self.open && sheet && (again || asked !== edits)) send();
    }
  }
  function packed() {
    const bytes = new Uint8Array(Math.ceil(mask.length / 8));
    for (let at = 0; at < mask.length; at += 1) if (mask[at]) bytes[at >> 3] |= 128 >> (at & 7);
    let text = "";
    for (let at = 0; at < bytes.length; at += 8192) text += String.fromCharCode(...bytes.subarray(at, at + 8192));
    return btoa(text);
  }
  function show(found, current) {
    say(found.sentences);
    const digits = sheet.unit ? 1 : 2, chosen = new Set(found.shown);
    const top = Math.max(1e-9, ...found.effects.flatMap((each) => [Math.abs(each.change), ...each.elsewhere])) * 1.04;
    const rows = [];
    let output = null;
    for (const each of found.effects) {
      if (!chosen.has(each.output)) continue;
      if (each.output !== output) {
        const head = document.createElement("tr"), cell = document.createElement("th");
        cell.colSpan = 3; cell.textContent = `${each.output}, ${text(each.before, digits)} as it is`; head.append(cell); rows.push(head);
      }
      output = each.output;
      rows.push(row(each, top, digits));
    }
    byId("effects").querySelector("tbody").replaceChildren(...rows);
    byId("effects").hidden = false;
    byId("shots").replaceChildren(...Object.entries(found.without).map(([fill, source]) => {
      const figure = document.createElement("figure"), image = new Image(), words = document.createElement("figcaption");
      image.src = source; image.alt = `The frame with the painted part ${fill}`; words.textContent = fill; figure.append(image, words);
      return figure;
    }));
    const state = replay.state();
    byId("save").disabled = !current || !state.saves;
    byId("save").title = state.saves ? "" : "Start the replay with --cases FOLDER to save";
    if (found.saved) byId("saved").textContent = `Saved as ${found.saved}; the report shows it.`;
    else if (!state.saves) byId("saved").textContent = "Start the replay with --cases FOLDER to save cases.";
    if (current) { offsets = found.offsets; paint(); }
  }
  const text = (value, digits) => `${value.toFixed(digits).replace("-", "−")}${sheet.unit}`;
  function row(each, top, digits) {
    const made = document.createElement("tr"), cells = ["th", "td", "td"].map((kind) => document.createElement(kind));
    cells[0].textContent = each.fill;
    cells[1].className = "n"; cells[1].textContent = (each.change > 0 ? "+" : "") + text(each.change, digits);
    cells[2].className = "plot"; cells[2].append(plot(each, top));
    made.append(...cells);
    return made;
  }
  function plot(each, top) {
    const make = (name, values) => { const made = document.createElementNS("http://www.w3.org/2000/svg", name); for (const [key, value] of Object.entries(values)) made.setAttribute(key, value); return made; };
    const at = (value) => `${((100 * Math.abs(value)) / top).toFixed(2)}%`, svg = make("svg", { role: "img", "aria-label": `larger than at ${each.exceeded} of ${each.elsewhere.length} other places` });
    svg.append(make("line", { class: "axis", x1: "0", x2: "100%", y1: 9, y2: 9 }), ...each.elsewhere.map((value) => make("line", { x1: at(value), x2: at(value), y1: 3, y2: 15 })), make("circle", { cx: at(each.change), cy: 9, r: 4.5 }));
    return svg;
  }

  // Hands and keys.
  function point(event) {
    const box = canvas.getBoundingClientRect(), scale = Math.min(box.width / sheet.width, box.height / sheet.height);
    return [(event.clientX - box.left - (box.width - sheet.width * scale) / 2) / scale - 0.5, (event.clientY - box.top - (box.height - sheet.height * scale) / 2) / scale - 0.5];
  }
  canvas.addEventListener("pointerdown", (event) => {
    if (!sheet || event.button !== 0) return;
    event.preventDefault(); canvas.focus({ preventScroll: true });
    cursor = point(event);
    if (tool === "region") { region(cursor); return; }
    canvas.setPointerCapture(event.pointerId); last = cursor; dab(last, last);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!sheet) return;
    cursor = point(event);
    if (last) { dab(last, cursor); last = cursor; } else if (document.activeElement === canvas) paint();
  });
  for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) canvas.addEventListener(end, () => { last = null; });
  canvas.addEventListener("focus", () => sheet && paint());
  canvas.addEventListener("blur", () => sheet && paint());
  const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  canvas.addEventListener("keydown", (event) => {
    if (!sheet || event.ctrlKey || event.metaKey || event.altKey) return;
    const move = MOVES[event.key], key = event.key.toLowerCase();
    if (move) {
      const far = event.shiftKey ? 1 : Math.max(1, radius());
      cursor = [Math.min(sheet.width - 1, Math.max(0, cursor[0] + move[0] * far)), Math.min(sheet.height - 1, Math.max(0, cursor[1] + move[1] * far))];
      paint();
    } else if (event.key === "Enter" || event.key === " ") { if (tool === "region") region(cursor); else dab(cursor, cursor); }
    else if (event.key === "Delete" || event.key === "Backspace") clear();
    else if (key === "e") choose("erase"); else if (key === "p") choose("paint"); else if (key === "r") choose("region");
    else if (key === "[" || key === "]") { byId("size").value = Number(byId("size").value) + (key === "]" ? 2 : -2); paint(); }
    else return;
    event.preventDefault();
  });
  function choose(name) { tool = name; for (const each of TOOLS) byId(`tool-${each}`).setAttribute("aria-pressed", each === name); if (sheet) paint(); }
  for (const each of TOOLS) byId(`tool-${each}`).addEventListener("click", () => choose(each));
  byId("clear").addEventListener("click", () => sheet && clear());
  byId("fresh").addEventListener("click", take);
  byId("save").addEventListener("click", () => sheet && send(true));
  return self;
}
