const data = readJson("data"), bytes = readBinary("binary");
const ARRAYS = { Uint16Array, Uint32Array, Float32Array };
const arrays = Object.fromEntries(Object.entries(data.arrays).map(([name, [offset, length, kind]]) =>
  [name, new ARRAYS[kind](bytes.buffer, bytes.byteOffset + offset, length)]));
const N = data.clips, K = data.neighbors, MOST_ROWS = 200;
const px = new Float32Array(N), py = new Float32Array(N);
for (let i = 0; i < N; i++) { px[i] = arrays.places[2 * i] / 65535; py[i] = arrays.places[2 * i + 1] / 65535; }

// What the user did. `focus` is the clip under the keyboard or the last click; `hovered` is the one under the pointer.
const state = {
  coloring: 0, scale: 1, left: 0, top: 0, focus: -1, hovered: -1, neighbors: false, lasso: false, list: "selection",
  selected: new Uint8Array(N), count: 0, hidden: new Set(), names: {}, labels: new Map(),
};
const stage = $("stage"), points = $("points"), overlay = $("overlay");
let width = 0, height = 0, ratio = 1, colors = [], codes = null, queued = false;

// Names come from outside: characters that control a page are shown as escapes.
const shown = text => text.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, c => `\\u${c.codePointAt(0).toString(16).padStart(4, "0")}`);
const fileOf = i => data.files[arrays.file[i]];
const timesOf = i => arrays.end[i] > arrays.start[i] ? `${arrays.start[i].toFixed(1)} to ${arrays.end[i].toFixed(1)} s` : "image";
const legend = () => data.colorings[state.coloring];
const isCluster = () => state.coloring === 0;
const nameOf = (number, label) => (number === 0 && state.names[label]) || label;
function valueOf(i) {
  const value = arrays[`color${state.coloring}`][i];
  if (legend().labels) return value ? nameOf(state.coloring, legend().labels[value - 1].name) : "no label";
  return Number.isFinite(value) ? value.toPrecision(4) : "no value";
}

// Grid of places: the points of each cell, for the nearest one to the pointer.
const G = Math.max(1, Math.min(400, Math.ceil(Math.sqrt(N / 4))));
const cellStart = new Uint32Array(G * G + 1), cellItems = new Uint32Array(N);
const cellOf = i => Math.min(G - 1, Math.floor(py[i] * G)) * G + Math.min(G - 1, Math.floor(px[i] * G));
for (let i = 0; i < N; i++) cellStart[cellOf(i) + 1]++;
for (let c = 0; c < G * G; c++) cellStart[c + 1] += cellStart[c];
{
  const next = cellStart.slice();
  for (let i = 0; i < N; i++) cellItems[next[cellOf(i)]++] = i;
}
const isShown = i => !state.hidden.size || !state.hidden.has(codes[i]);
function nearestPoint(x, y, radius) {  // in CSS pixels of the stage
  const fx = (x - state.left) / state.scale, fy = (y - state.top) / state.scale, r = radius / state.scale;
  const clamp = v => Math.max(0, Math.min(G - 1, Math.floor(v * G)));
  let best = -1, least = r * r;
  for (let cy = clamp(fy - r); cy <= clamp(fy + r); cy++) for (let cx = clamp(fx - r); cx <= clamp(fx + r); cx++) {
    for (let k = cellStart[cy * G + cx]; k < cellStart[cy * G + cx + 1]; k++) {
      const i = cellItems[k], d = (px[i] - fx) ** 2 + (py[i] - fy) ** 2;
      if (d < least && isShown(i)) { least = d; best = i; }
    }
  }
  return best;
}
const screen = i => [state.left + px[i] * state.scale, state.top + py[i] * state.scale];

// Colors as 0xAABBGGRR, which little-endian canvases take.
function pack(color) {
  const [r, g, b] = [1, 3, 5].map(k => parseInt(color.slice(k, k + 2), 16));
  return (255 << 24 | b << 16 | g << 8 | r) >>> 0;
}
const RAMP = ["#440154", "#3b528b", "#21918c", "#5ec962", "#fde725"];  // viridis
function rampColor(share) {
  const at = Math.max(0, Math.min(1, share)) * (RAMP.length - 1), k = Math.min(RAMP.length - 2, Math.floor(at));
  const mix = [1, 3, 5].map(c => Math.round(parseInt(RAMP[k].slice(c, c + 2), 16) * (k + 1 - at) + parseInt(RAMP[k + 1].slice(c, c + 2), 16) * (at - k)));
  return `#${mix.map(v => v.toString(16).padStart(2, "0")).join("")}`;
}
function setColoring(number) {
  state.coloring = number;
  state.hidden.clear();
  const values = arrays[`color${number}`], { labels, low, high } = legend();
  if (labels) {
    codes = values;
    colors = [pack(data.noneColor), ...labels.map(label => pack(label.color))];
  } else {
    codes = new Uint16Array(N);
    colors = [pack(data.noneColor), ...Array.from({ length: 64 }, (_, k) => pack(rampColor(k / 63)))];
    for (let i = 0; i < N; i++) codes[i] = Number.isFinite(values[i]) ? 1 + Math.round(63 * (values[i] - low) / (high - low || 1)) : 0;
  }
  fillLegend();
  draw();
}
function fillLegend() {
  const { labels, about, low, high } = legend(), list = $("legend");
  $("sentence").textContent = shown(about);
  list.replaceChildren();
  $("ramp").hidden = !!labels;
  $("naming").hidden = !isCluster();
  if (!labels) {
    $("low").textContent = low.toPrecision(3);
    $("high").textContent = high.toPrecision(3);
    $("ramp").firstElementChild.style.background = `linear-gradient(to right, ${RAMP.join(", ")})`;
    return;
  }
  labels.forEach((label, k) => {
    const item = element("li"), dot = element("i"), button = element("button", "", shown(label.name));
    dot.style.background = label.color;
    button.type = "button";
    button.title = "Show or hide";
    button.setAttribute("aria-pressed", !state.hidden.has(k + 1));
    button.addEventListener("click", () => {
      state.hidden.has(k + 1) ? state.hidden.delete(k + 1) : state.hidden.add(k + 1);
      button.setAttribute("aria-pressed", !state.hidden.has(k + 1));
      draw();
    });
    item.append(dot, button);
    if (isCluster()) {
      const name = element("input");
      name.type = "text";
      name.placeholder = "name";
      name.value = state.names[label.name] ?? "";
      name.setAttribute("aria-label", `Name of ${label.name}`);
      name.addEventListener("input", () => { state.names[label.name] = name.value.trim(); countLabels(); });
      item.append(name);
    }
    item.append(element("small", "", label.count.toLocaleString("en")));
    list.append(item);
  });
}

// Points are written into the pixels of the canvas: a hundred thousand take a few milliseconds.
function disc(radius) {
  const reach = Math.ceil(radius + 0.5), kernel = [];
  for (let y = -reach; y <= reach; y++) for (let x = -reach; x <= reach; x++) {
    const alpha = Math.max(0, Math.min(1, radius + 0.5 - Math.hypot(x, y)));
    if (alpha > 0) kernel.push(x, y, Math.round(255 * alpha));
  }
  return Int16Array.from(kernel);
}
function pointRadius() {
  const zoom = Math.sqrt(state.scale / fitScale());
  return Math.max(1.1, Math.min(7, 0.33 * Math.sqrt(width * height / N))) * Math.min(2.5, zoom) * ratio;
}
function stamp(pixels, W, H, kernel, x, y, color) {
  for (let k = 0; k < kernel.length; k += 3) {
    const u = x + kernel[k], v = y + kernel[k + 1];
    if (u < 0 || v < 0 || u >= W || v >= H) continue;
    const at = v * W + u, a = kernel[k + 2], below = pixels[at];
    if (a === 255) pixels[at] = color;
    else if (!(below >>> 24)) pixels[at] = (color & 0xffffff | a << 24) >>> 0;
    else {
      const mix = shift => Math.round(((color >>> shift & 255) * a + (below >>> shift & 255) * (255 - a)) / 255) << shift;
      pixels[at] = (mix(0) | mix(8) | mix(16) | Math.max(a, below >>> 24) << 24) >>> 0;
    }
  }
}
function drawPoints() {
  const context = points.getContext("2d"), W = points.width, H = points.height;
  const image = context.createImageData(W, H), pixels = new Uint32Array(image.data.buffer), kernel = disc(pointRadius());
  const faint = pack(cssColor("--rule")), some = state.count > 0;
  for (const chosen of some ? [0, 1] : [0]) for (let i = 0; i < N; i++) {
    if (some && state.selected[i] !== chosen) continue;
    if (!isShown(i)) continue;
    const x = Math.round((state.left + px[i] * state.scale) * ratio), y = Math.round((state.top + py[i] * state.scale) * ratio);
    if (x < -20 || y < -20 || x > W + 20 || y > H + 20) continue;
    stamp(pixels, W, H, kernel, x, y, some && !chosen ? faint : colors[codes[i]]);
  }
  context.putImageData(image, 0, 0);
}
let path = [];  // of the lasso
function drawOverlay() {
  const context = overlay.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  const ink = cssColor("--ink"), radius = pointRadius() / ratio + 3;
  const ring = (i, color, line) => {
    const [x, y] = screen(i);
    context.strokeStyle = color;
    context.lineWidth = line;
    context.beginPath();
    context.arc(x, y, radius, 0, 7);
    context.stroke();
  };
  if (state.neighbors && state.focus >= 0) {
    const [x, y] = screen(state.focus);
    context.strokeStyle = cssColor("--target");
    context.lineWidth = 1.5;
    for (const j of neighborsOf(state.focus)) {
      context.beginPath();
      context.moveTo(x, y);
      context.lineTo(...screen(j));
      context.stroke();
      ring(j, cssColor("--target"), 2);
    }
  }
  if (state.focus >= 0) ring(state.focus, ink, 2.5);
  if (state.hovered >= 0 && state.hovered !== state.focus) ring(state.hovered, ink, 1.5);
  if (path.length > 1) {
    context.beginPath();
    path.forEach(([x, y], k) => k ? context.lineTo(x, y) : context.moveTo(x, y));
    context.closePath();
    context.fillStyle = cssColor("--context") + "22";
    context.fill();
    context.strokeStyle = cssColor("--context");
    context.lineWidth = 1.5;
    context.stroke();
  }
}
function draw() {
  if (queued) return;
  queued = true;
  requestAnimationFrame(() => {
    queued = false;
    if (!points.width || !points.height) return;
    drawPoints();
    drawOverlay();
  });
}
const neighborsOf = i => arrays.neighbors.subarray(i * K, (i + 1) * K);

// View.
const MARGIN = 34;
const extent = [0, 0];
for (let i = 0; i < N; i++) { extent[0] = Math.max(extent[0], px[i]); extent[1] = Math.max(extent[1], py[i]); }
const fitScale = () => Math.max(1, Math.min((width - 2 * MARGIN) / (extent[0] || 1), (height - 2 * MARGIN - 30) / (extent[1] || 1)));
function fit() {
  state.scale = fitScale();
  state.left = (width - extent[0] * state.scale) / 2;
  state.top = (height + 30 - extent[1] * state.scale) / 2;
  draw();
}
function zoomAt(x, y, factor) {
  const scale = Math.max(fitScale() * 0.5, Math.min(fitScale() * 400, state.scale * factor));
  state.left = x - (x - state.left) * scale / state.scale;
  state.top = y - (y - state.top) * scale / state.scale;
  state.scale = scale;
  draw();
}
function resize() {
  const whole = Math.abs(state.scale - (width ? fitScale() : 1)) < 1e-6;
  width = stage.clientWidth;
  height = stage.clientHeight;
  ratio = window.devicePixelRatio || 1;
  sizeCanvas(points, width, height);
  sizeCanvas(overlay, width, height);
  whole ? fit() : draw();
}
new ResizeObserver(resize).observe(stage);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);

// Thumbnails: frames side by side, shown in turn while they are looked at.
let tick = 0;
const thumbnailOfFile = new Map(Object.keys(data.thumbnails).map(i => [arrays.file[i], +i]));
const hasOther = i => !data.thumbnails[i] && thumbnailOfFile.has(arrays.file[i]);
function thumbnail(i) {
  const uri = data.thumbnails[hasOther(i) ? thumbnailOfFile.get(arrays.file[i]) : i];
  const box = element("div", uri ? "thumb" : "thumb none", uri ? "" : "no thumbnail");
  if (uri) { box.style.backgroundImage = `url("${uri}")`; box.dataset.frames = arrays.end[i] > arrays.start[i] ? data.frames : 1; }
  return box;
}
setInterval(() => {
  if (matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  tick++;
  for (const box of document.querySelectorAll("#card .thumb, #list button:hover .thumb, #list button:focus .thumb")) {
    const frames = +box.dataset.frames || 1;
    box.style.backgroundPosition = `${frames > 1 ? 100 * (tick % frames) / (frames - 1) : 0}% 0`;
  }
}, 170);
function showCard(i) {
  const card = $("card");
  if (i < 0) { card.hidden = true; return; }
  card.firstElementChild.replaceWith(thumbnail(i));
  $("card-text").textContent = `${shown(fileOf(i))}, ${timesOf(i)}. ${shown(legend().name)}: ${shown(valueOf(i))}` +
    (hasOther(i) ? ". The thumbnail is of another moment of the file." : "");
  card.hidden = false;
  const [x, y] = screen(i);
  card.style.left = `${Math.max(6, Math.min(width - card.offsetWidth - 6, x + 16 + card.offsetWidth > width ? x - card.offsetWidth - 16 : x + 16))}px`;
  card.style.top = `${Math.max(6, Math.min(height - card.offsetHeight - 6, y - card.offsetHeight / 2))}px`;
}
function hover(i) {
  if (i === state.hovered) return;
  state.hovered = i;
  showCard(i);
  drawOverlay();
}
function focusOn(i, center = false) {
  state.focus = i;
  if (center && i >= 0) {
    const [x, y] = screen(i);
    if (x < 20 || y < 20 || x > width - 20 || y > height - 20) { state.left += width / 2 - x; state.top += height / 2 - y; draw(); }
  }
  showCard(i);
  drawOverlay();
}
function showNeighbors(i) {
  state.neighbors = true;
  focusOn(i, true);
  openList("neighbors");
}
function select(indices, add = false) {
  if (!add) state.selected.fill(0);
  for (const i of indices) state.selected[i] = 1;
  state.count = state.selected.reduce((sum, one) => sum + one, 0);
  draw();
  openList("selection");
}
function clear() {
  Object.assign(state, { focus: -1, hovered: -1, neighbors: false });
  showCard(-1);
  setLasso(false);
  select([]);
}
function setLasso(on) {
  state.lasso = on;
  $("lasso").setAttribute("aria-pressed", on);
  overlay.classList.toggle("lasso", on);
}

// Lists.
const selection = () => { const found = []; for (let i = 0; i < N; i++) if (state.selected[i]) found.push(i); return found; };
const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;
const firstClip = file => { for (let i = 0; i < N; i++) if (arrays.file[i] === file) return i; return -1; };
function row(i, title, note, act = () => showNeighbors(i)) {
  const button = element("button"), text = element("span", "", title);
  button.type = "button";
  text.append(element("small", "", note));
  button.append(thumbnail(i), text);
  button.addEventListener("click", act);
  button.addEventListener("pointerenter", () => { state.hovered = i; drawOverlay(); });
  button.addEventListener("pointerleave", () => { state.hovered = -1; drawOverlay(); });
  return button;
}
const LISTS = {
  selection() {
    const found = selection();
    $("about").textContent = found.length ? `${plural(found.length, "clip")} selected. Give them a label, or save the list.`
      : "Nothing is selected. Draw around clips with the lasso, or press S when a clip has the focus.";
    return found.map(i => row(i, shown(fileOf(i)), [timesOf(i), state.labels.get(i)].filter(Boolean).map(shown).join(", ")));
  },
  neighbors() {
    if (state.focus < 0) { $("about").textContent = "Click a point: the clips most similar to it are listed here."; return []; }
    $("about").textContent = `The clips of other files most similar to ${shown(fileOf(state.focus))}, ${timesOf(state.focus)}. 1 is the same, 0 unrelated.`;
    return [...neighborsOf(state.focus)].map((j, k) =>
      row(j, shown(fileOf(j)), `${timesOf(j)}, similarity ${arrays.similarities[state.focus * K + k].toFixed(3)}`));
  },
  duplicates() {
    const groups = data.duplicates;
    $("about").textContent = groups.length ? `${plural(groups.length, "group")} of files that show the same, at times that correspond.`
      : "No two files show the same.";
    return groups.map(group => {
      const notes = group.pairs.map(([a, b, s, e, u, v, speed, similarity]) =>
        `${shown(data.files[a])} ${s.toFixed(1)} to ${e.toFixed(1)} s is ${shown(data.files[b])} ${u.toFixed(1)} to ${v.toFixed(1)} s` +
        `${speed === 1 ? "" : `, speed ${speed}`}, similarity ${similarity.toFixed(3)}`);
      const first = firstClip(group.files[0]);
      return row(first, group.files.map(file => shown(data.files[file])).join(", "), notes.join("; "), () => {
        const files = new Set(group.files), found = [];
        for (let i = 0; i < N; i++) if (files.has(arrays.file[i])) found.push(i);
        state.neighbors = false;
        focusOn(first, true);
        select(found);
        openList("duplicates");
      });
    });
  },
  outliers() {
    $("about").textContent = "Clips that are least like any other: mistakes, rare events, broken recordings.";
    return data.outliers.map(([i, score]) => row(i, shown(fileOf(i)), `${timesOf(i)}, distance ${score.toFixed(3)}`));
  },
  picks() {
    $("about").textContent = data.picks.length ? "Clips that differ most from each other, in this order: labels of these say most."
      : "Run tubelet map with --pick 200 to choose clips that differ most from each other, to be labeled first.";
    return data.picks.map((i, k) => row(i, `${k + 1}. ${shown(fileOf(i))}`, timesOf(i)));
  },
};
function openList(name) {
  state.list = name;
  for (const tab of document.querySelectorAll(".tabs button")) tab.setAttribute("aria-pressed", tab.dataset.list === name);
  const rows = LISTS[name](), kept = rows.slice(0, MOST_ROWS);
  if (rows.length > kept.length) kept.push(element("p", "where", `and ${plural(rows.length - kept.length, "more", "more")}, which a saved list has`));
  $("list").replaceChildren(...kept);
  $("give").disabled = $("save-list").disabled = !state.count;
}

// Label tables, for `tubelet fit`.
const cell = text => /[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
function tableRow(i, label) {
  const times = arrays.end[i] > arrays.start[i] ? [arrays.start[i].toFixed(3), arrays.end[i].toFixed(3)] : ["", ""];
  return [data.folder + fileOf(i), ...times, label].map(cell).join(",");
}
const saveTable = (rows, name) => saveFile(new Blob([["path,start_s,end_s,label", ...rows, ""].join("\n")], { type: "text/csv" }), name);
function labelOf(i) {
  const own = arrays.color0[i];
  return state.labels.get(i) ?? (own ? state.names[data.colorings[0].labels[own - 1].name] : "") ?? "";
}
function labeled() {
  const found = [];
  for (let i = 0; i < N; i++) { const label = labelOf(i); if (label) found.push([i, label]); }
  return found;
}
function countLabels() {
  const found = labeled(), classes = new Set(found.map(([, label]) => label)).size;
  $("save-labels").disabled = !found.length;
  $("named").textContent = found.length ? `${plural(found.length, "clip")} with ${plural(classes, "label")}.` : "";
}
$("save-labels").addEventListener("click", () => saveTable(labeled().map(([i, label]) => tableRow(i, label)), "labels.csv"));
$("save-list").addEventListener("click", () => saveTable(selection().map(i => tableRow(i, labelOf(i))), "list.csv"));
function giveLabel() {
  const label = $("label").value.trim();
  if (!label || !state.count) return;
  for (const i of selection()) state.labels.set(i, label);
  countLabels();
  openList("selection");
}
$("give").addEventListener("click", giveLabel);
$("label").addEventListener("keydown", event => { if (event.key === "Enter") giveLabel(); });

// Pointer: drag to move, two fingers or the wheel to zoom, the lasso to select.
const pointers = new Map();
let moved = false, pinch = 0;
const position = event => { const box = overlay.getBoundingClientRect(); return [event.clientX - box.left, event.clientY - box.top]; };
const spread = () => { const [a, b] = [...pointers.values()]; return Math.hypot(a[0] - b[0], a[1] - b[1]); };
overlay.addEventListener("pointerdown", event => {
  overlay.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, position(event));
  moved = false;
  if (pointers.size === 2) { pinch = spread(); path = []; moved = true; }
  else if (state.lasso) path = [position(event)];
});
overlay.addEventListener("pointermove", event => {
  const [x, y] = position(event), before = pointers.get(event.pointerId);
  if (!before) { hover(event.pointerType === "mouse" ? nearestPoint(x, y, 14) : -1); return; }
  if (Math.hypot(x - before[0], y - before[1]) < (moved ? 0.5 : 4)) return;
  moved = true;
  if (pointers.size === 1 && state.lasso) {
    path.push([x, y]);
    drawOverlay();
  } else if (pointers.size === 1) {
    state.left += x - before[0];
    state.top += y - before[1];
    hover(-1);
    draw();
  }
  pointers.set(event.pointerId, [x, y]);
  if (pointers.size === 2) {
    const [a, b] = [...pointers.values()], now = spread();
    zoomAt((a[0] + b[0]) / 2, (a[1] + b[1]) / 2, now / (pinch || now));
    pinch = now;
  }
});
function inside(polygon, x, y) {
  let odd = false;
  for (let a = 0, b = polygon.length - 1; a < polygon.length; b = a++) {
    const [ax, ay] = polygon[a], [bx, by] = polygon[b];
    if (ay > y !== by > y && x < (bx - ax) * (y - ay) / (by - ay) + ax) odd = !odd;
  }
  return odd;
}
function release(event) {
  if (!pointers.delete(event.pointerId)) return;
  const [x, y] = position(event);
  if (path.length > 2) {
    const polygon = path, found = [];
    for (let i = 0; i < N; i++) if (isShown(i) && inside(polygon, ...screen(i))) found.push(i);
    path = [];
    setLasso(false);
    select(found, event.shiftKey);
  } else if (!moved && event.type === "pointerup") {
    const i = nearestPoint(x, y, event.pointerType === "mouse" ? 14 : 24);
    i >= 0 ? showNeighbors(i) : focusOn(-1);
  }
  path = [];
  drawOverlay();
}
overlay.addEventListener("pointerup", release);
overlay.addEventListener("pointercancel", release);
overlay.addEventListener("pointerleave", () => { if (!pointers.size) { hover(-1); showCard(state.focus); } });
overlay.addEventListener("wheel", event => {
  event.preventDefault();
  zoomAt(...position(event), Math.exp(-event.deltaY * (event.deltaMode ? 0.06 : 0.0016)));
}, { passive: false });

// Keyboard: from the focused clip to the nearest one in a direction.
function step(dx, dy) {
  if (state.focus < 0) { focusOn(nearestPoint(width / 2, height / 2, Math.hypot(width, height)), true); return; }
  let best = -1, least = Infinity;
  for (let i = 0; i < N; i++) {
    const x = px[i] - px[state.focus], y = py[i] - py[state.focus], along = x * dx + y * dy, across = Math.abs(x * dy) + Math.abs(y * dx);
    if (i !== state.focus && along > 0 && across <= along && along + 2 * across < least && isShown(i)) { least = along + 2 * across; best = i; }
  }
  if (best >= 0) focusOn(best, true);
}
const KEYS = {
  ArrowLeft: () => step(-1, 0), ArrowRight: () => step(1, 0), ArrowUp: () => step(0, -1), ArrowDown: () => step(0, 1),
  Enter: () => { if (state.focus >= 0) showNeighbors(state.focus); },
  s: () => { if (state.focus >= 0) select([state.focus], true); },
  l: () => setLasso(!state.lasso), Escape: clear, 0: fit,
  "+": () => zoomAt(width / 2, height / 2, 1.4), "=": () => zoomAt(width / 2, height / 2, 1.4), "-": () => zoomAt(width / 2, height / 2, 1 / 1.4),
};
document.addEventListener("keydown", event => {
  const typing = event.target.matches("input, select"), act = KEYS[event.key] ?? KEYS[event.key.toLowerCase()];
  if (!act || event.ctrlKey || event.metaKey || event.altKey || (typing && event.key !== "Escape")) return;
  if (event.target.matches("button") && event.key === "Enter") return;
  event.preventDefault();
  act();
});
$("lasso").addEventListener("click", () => setLasso(!state.lasso));
$("all").addEventListener("click", fit);
$("clear").addEventListener("click", clear);
for (const tab of document.querySelectorAll(".tabs button")) tab.addEventListener("click", () => openList(tab.dataset.list));
data.colorings.forEach((coloring, k) => { const option = element("option", "", shown(coloring.name)); option.value = k; $("color").append(option); });
$("color").addEventListener("change", () => setColoring(+$("color").value));
resize();
setColoring(0);
openList("selection");
