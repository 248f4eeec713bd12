// State of the page, what each mode paints, and the controls.

const data = readJson("data");
const MODES = {
  pca: { name: "PCA colors", legend: "Patches of one color look alike to the model: the three directions in which its features vary most are red, green and blue, the same in all files.", timeline: "the mean color of each row of patches" },
  similarity: { name: "similarity", legend: "Click a patch, or drag over several: bright patches have features that point in the same direction (cosine similarity), in every frame of every file.", timeline: "the highest similarity in each time step" },
  clusters: { name: "clusters", legend: "Features in groups found by k-means, without any label: patches of one color belong to one group. Give the groups names; click a color to see only this group.", timeline: "the fraction of each group" },
  surprise: { name: "surprise", legend: "How wrong the predictor was about each patch while it was hidden from it: dark is expected from the surroundings, bright is surprising.", timeline: "the mean error of each time step" },
  compare: { name: "compare", legend: "Lines join patches of two frames that are each other's nearest neighbor among the features: what the model takes for the same thing.", timeline: "the mean color of each row of patches" },
};
const PALETTE = [[68, 119, 170], [238, 136, 102], [68, 187, 153], [238, 221, 136], [170, 68, 153], [153, 221, 255], [204, 51, 17], [187, 187, 187],
  [17, 119, 51], [255, 170, 187], [51, 34, 136], [170, 170, 0], [0, 153, 136], [136, 34, 85], [119, 170, 221], [85, 85, 85]];
const state = {
  mode: "pca", opacity: 0.8, level: data.encoders[0].levels.length - 1, encoderName: data.encoders[0].encoder, smooth: true, original: false,
  shown: [], active: null, drawing: false, query: null, temperature: 10 ** -0.8, threshold: 0, follow: true, k: 6, isolated: new Set(), names: {},
  region: null, foreground: 0, invert: false, pins: { A: null, B: null }, lines: 40,
};
const several = new Set(data.encoders.map(each => each.model)).size > 1;
const encoderName = encoder => several ? data.encoders[encoder].model : `${data.encoders[encoder].model} ${data.encoders[encoder].encoder}`.trim();
const levelName = () => data.encoders[state.shown[0]].levels[levelOf(state.shown[0])].name;
const levelOf = encoder => Math.min(state.level, data.encoders[encoder].levels.length - 1);

const offsets = data.encoders.map(({ grids }) => {
  let total = 0;
  return [...grids.map(([t, h, w]) => { const first = total; total += t * h * w; return first; }), total];
});
function firstToken(encoder, file, step) {
  const [, rows, columns] = data.encoders[encoder].grids[file];
  return offsets[encoder][file] + step * rows * columns;
}
function tokenAt(card, encoder, step, x, y) {
  const [, rows, columns] = data.encoders[encoder].grids[card.number];
  return firstToken(encoder, card.number, step) + Math.floor(y * rows) * columns + Math.floor(x * columns);
}

const SERVED = data.files.some(file => file.source);
const decoded = new Map();
function features(encoder, level = levelOf(encoder)) {
  const key = `${encoder}-${level}`;
  const { grids, levels } = data.encoders[encoder];
  if (!decoded.has(key)) decoded.set(key, new FeatureStore(grids, levels[level].directions, SERVED ? null : readBinary(`tokens-${key}`), key));
  return decoded.get(key);
}
const surprises = new Map();
function surpriseOf(encoder) {
  if (!surprises.has(encoder)) surprises.set(encoder, readBinary(`surprise-${encoder}`));
  return surprises.get(encoder);
}

// Layers: what a mode paints over the frames of an encoder. paint fills RGBA of the tokens begin to end.
const layers = [];
const scale = (map, value) => 3 * Math.round(255 * Math.min(1, Math.max(0, value)));
function paintMap(pixels, map, count, value) {
  for (let i = 0; i < count; i++) {
    const at = scale(map, value(i));
    pixels[4 * i] = map[at];
    pixels[4 * i + 1] = map[at + 1];
    pixels[4 * i + 2] = map[at + 2];
    pixels[4 * i + 3] = 255;
  }
}
function plotCurve(context, values, width, height, color, low, high) {  // values of the time steps, filled below
  const x = step => values.length > 1 ? step / (values.length - 1) * width : 0;
  const y = value => height - 3 - (height - 8) * Math.min(1, Math.max(0, (value - low) / (high - low || 1)));
  context.beginPath();
  context.moveTo(0, height);
  values.forEach((value, step) => context.lineTo(x(step), Number.isNaN(value) ? height : y(value)));
  context.lineTo(width, height);
  context.fillStyle = color;
  context.globalAlpha = 0.16;
  context.fill();
  context.globalAlpha = 1;
  context.beginPath();
  values.forEach((value, step) => context[step && !Number.isNaN(values[step - 1]) ? "lineTo" : "moveTo"](x(step), y(value)));  // NaN draws nothing
  context.strokeStyle = color;
  context.lineWidth = 1.8;
  context.stroke();
  context.fillStyle = cssColor("--ink2");
  context.strokeStyle = cssColor("--card");
  context.lineWidth = 4;
  context.font = "12px system-ui, sans-serif";
  for (const [value, y] of [[high, 13], [low, height - 5]]) {
    context.strokeText(value.toFixed(2), 6, y);
    context.fillText(value.toFixed(2), 6, y);
  }
}
function plotSteps(context, width, height, steps, rows, paint) {  // a column of colors for each time step
  const canvas = element("canvas");
  [canvas.width, canvas.height] = [steps, rows];
  const small = canvas.getContext("2d"), image = small.createImageData(steps, rows);
  for (let step = 0; step < steps; step++) for (let row = 0; row < rows; row++) {
    const [r, g, b] = paint(step, row), at = 4 * (row * steps + step);
    image.data.set([r, g, b, 255], at);
  }
  small.putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(canvas, 0, 0, width, height);
}
const isFilled = (encoder, token) => { const filled = layers[encoder]?.filled; return !filled || filled.has(features(encoder).chunkAt(token)); };
const perStep = (encoder, card, of) => {  // a value of each time step, NaN where it is not known yet
  const [steps, rows, columns] = data.encoders[encoder].grids[card.number];
  return Array.from({ length: steps }, (_, step) => { const begin = firstToken(encoder, card.number, step); return isFilled(encoder, begin) ? of(begin, begin + rows * columns) : NaN; });
};

function basisOf(encoder) {  // of everything, of a region, or of the foreground
  const everything = data.encoders[encoder].levels[levelOf(encoder)].pca;
  if (state.region) {
    const { card, points, second } = state.region, step = card.stepAt(encoder, second), inside = [];
    const [, rows, columns] = data.encoders[encoder].grids[card.number], begin = firstToken(encoder, card.number, step), found = features(encoder).at(begin);
    for (let i = 0; i < rows * columns; i++) if (isInside([(i % columns + 0.5) / columns, (Math.floor(i / columns) + 0.5) / rows], points)) inside.push(found.unit(begin + i));
    return { basis: inside.length > 3 ? principalComponents(inside) : everything };
  }
  if (!state.foreground) return { basis: everything };
  const rows = features(encoder).sample, sign = state.invert ? -1 : 1;  // of the first component that is kept
  const first = Float32Array.from(rows, row => sign * row.reduce((sum, value, d) => sum + (value - everything.mean[d]) * everything.axes[0][d], 0));
  const limit = first.slice().sort()[Math.floor(state.foreground / 100 * (rows.length - 1))], inside = rows.filter((_, i) => first[i] >= limit);
  return { basis: inside.length > 3 ? principalComponents(inside) : everything, keeps: (found, token) => sign * found.project(everything, token, 0) >= limit - 1e-6 };
}
function isInside([x, y], polygon) {
  let inside = false;
  for (let i = 0, j = polygon.length - 1; i < polygon.length; j = i++) {
    const [xi, yi] = polygon[i], [xj, yj] = polygon[j];
    if ((yi > y) !== (yj > y) && x < (xj - xi) * (y - yi) / (yj - yi) + xi) inside = !inside;
  }
  return inside;
}
const colored = new Map();  // the last layer in the colors of everything, by encoder
function pcaLayer(encoder) {
  const found = features(encoder), before = colored.get(encoder), everything = !state.region && !state.foreground;
  if (everything && before?.found === found) return before.layer;
  const { basis, keeps } = basisOf(encoder), rgb = new Uint8ClampedArray(3 * found.count), kept = keeps && new Uint8Array(found.count);
  const spans = basis.low.map((low, axis) => basis.high[axis] - low || 1);
  const layer = {
    basis, kept, filled: new Set(),
    fill({ begin, end, features: own }) {
      for (let i = begin; i < end; i++) {
        for (let axis = 0; axis < 3; axis++) rgb[3 * i + axis] = 255 * (own.project(basis, i, axis) - basis.low[axis]) / spans[axis];
        if (kept) kept[i] = keeps(own, i) ? 1 : 0;
      }
    },
    paint(pixels, begin, end) {
      for (let i = begin, at = 0; i < end; i++, at += 4) {
        for (let axis = 0; axis < 3; axis++) pixels[at + axis] = rgb[3 * i + axis];
        pixels[at + 3] = !kept || kept[i] ? 255 : 0;
      }
    },
    plot(context, card, width, height) {
      const [steps, rows, columns] = data.encoders[encoder].grids[card.number];
      plotSteps(context, width, height, steps, rows, (step, row) => {
        const begin = firstToken(encoder, card.number, step) + row * columns, sum = [0, 0, 0];
        let count = 0;
        if (isFilled(encoder, begin)) {
          for (let i = begin; i < begin + columns; i++) if (!kept || kept[i]) { for (let c = 0; c < 3; c++) sum[c] += rgb[3 * i + c]; count++; }
        }
        return count ? sum.map(value => value / count) : [24, 26, 30];
      });
    },
    describe(token) {
      const own = found.at(token);
      return own ? `components ${basis.low.map((_, axis) => own.project(basis, token, axis).toFixed(2)).join(", ")}` : "";
    },
  };
  if (everything) colored.set(encoder, { found, layer });
  return layer;
}
function similarityLayer(encoder) {
  const { query } = state, found = features(encoder), map = colormaps.similarity;
  if (!query) return null;
  const values = new Float32Array(found.count).fill(NaN), direction = queryDirection(encoder);
  const layer = {
    values, low: Infinity, high: -Infinity, path: new Map(), filled: new Set(),
    fill({ begin, features: own }) {
      const here = own.similarity(direction), [low, high] = range(here);
      values.set(here, begin);
      layer.low = Math.min(layer.low, low);
      layer.high = Math.max(layer.high, high);
    },
    finish() { if (state.follow && query.card.file.video) layer.path.set(query.card.number, followPoint(encoder, values)); },
    paint(pixels, begin, end) {
      const { low, high } = layer, least = Math.exp((low - high) / state.temperature);
      const brightness = value => (Math.exp((value - high) / state.temperature) - least) / (1 - least || 1);
      if (!state.threshold) return paintMap(pixels, map, end - begin, i => brightness(values[begin + i]));
      for (let i = begin, at = 3; i < end; i++, at += 4) pixels[at] = values[i] >= state.threshold ? 0 : 235;
    },
    plot(context, card, width, height) {
      const maxima = perStep(encoder, card, (begin, end) => range(values, begin, end)[1]);
      const { high } = layer, least = range(maxima)[0] - 0.02, bottom = state.threshold ? Math.min(least, state.threshold) : least;
      plotCurve(context, maxima, width, height, cssColor("--target"), bottom, high);
      if (state.threshold) {
        const y = height - 3 - (height - 8) * (state.threshold - bottom) / (high - bottom);
        context.setLineDash([4, 4]);
        context.strokeStyle = cssColor("--ink2");
        context.strokeRect(-2, y, width + 4, 0);
        context.setLineDash([]);
      }
    },
    describe: token => `similarity ${values[token].toFixed(3)}`,
    best(card, step) {
      const [, rows, columns] = data.encoders[encoder].grids[card.number], begin = firstToken(encoder, card.number, step);
      let most = begin;
      for (let i = begin; i < begin + rows * columns; i++) if (values[i] > values[most]) most = i;
      return [((most - begin) % columns + 0.5) / columns, (Math.floor((most - begin) / columns) + 0.5) / rows];
    },
  };
  return layer;
}
function queryDirection(encoder) {
  const { card, box, second } = state.query, [, rows, columns] = data.encoders[encoder].grids[card.number];
  const [x0, y0, x1, y1] = cells(box, rows, columns), begin = firstToken(encoder, card.number, card.stepAt(encoder, second)), tokens = [];
  for (let y = y0; y < y1; y++) for (let x = x0; x < x1; x++) tokens.push(begin + y * columns + x);
  return features(encoder).at(begin).mean(tokens);
}
const LOST = 0.5;  // similarity below which a point is no longer followed
// The most similar patch near that of the step before, in both directions of time; between patches by their similarity.
function followPoint(encoder, values) {
  const { card, box, second } = state.query, [steps, rows, columns] = data.encoders[encoder].grids[card.number];
  const start = card.stepAt(encoder, second), reach = Math.max(2, Math.round(0.15 * Math.max(rows, columns))), path = Array(steps).fill(null);
  const middle = [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2];
  path[start] = box[0] === box[2] ? [(Math.floor(box[0] * columns) + 0.5) / columns, (Math.floor(box[1] * rows) + 0.5) / rows] : middle;
  for (const direction of [1, -1]) {
    for (let step = start + direction; step >= 0 && step < steps; step += direction) {
      const [px, py] = path[step - direction], cx = Math.floor(px * columns), cy = Math.floor(py * rows), begin = firstToken(encoder, card.number, step);
      let best = null, most = -2;
      for (let y = Math.max(0, cy - reach); y <= Math.min(rows - 1, cy + reach); y++) {
        for (let x = Math.max(0, cx - reach); x <= Math.min(columns - 1, cx + reach); x++) {
          const value = values[begin + y * columns + x] - 0.012 * Math.hypot(x - cx, y - cy);
          if (value > most) { most = value; best = [x, y]; }
        }
      }
      if (most < LOST) break;  // out of the frame, or another scene
      let sum = 0, sx = 0, sy = 0;
      for (let y = Math.max(0, best[1] - 1); y <= Math.min(rows - 1, best[1] + 1); y++) {
        for (let x = Math.max(0, best[0] - 1); x <= Math.min(columns - 1, best[0] + 1); x++) {
          const weight = Math.exp((values[begin + y * columns + x] - most) / 0.05);
          sum += weight; sx += weight * (x + 0.5); sy += weight * (y + 0.5);
        }
      }
      path[step] = [sx / sum / columns, sy / sum / rows];
    }
  }
  return path;
}
function clusterLayer(encoder) {
  const found = features(encoder), { sample } = found, centers = kMeans(sample, state.k), groups = new Uint8Array(found.count);
  const sizes = new Float64Array(state.k), counts = new Float64Array(state.k);
  for (const row of sample) sizes[nearest(centers, row)]++;
  const order = [...sizes.keys()].sort((a, b) => sizes[b] - sizes[a]), sorted = order.map(group => centers[group]);  // the largest is the first
  const layer = {
    groups, shares: [], filled: new Set(),
    fill({ begin, features: own }) {
      const here = own.assign(sorted);
      for (const group of here) counts[group]++;
      groups.set(here, begin);
    },
    finish() { const total = counts.reduce((sum, count) => sum + count); layer.shares = [...counts].map(count => count / total); },
    paint(pixels, begin, end) {
      for (let i = begin, at = 0; i < end; i++, at += 4) {
        const on = !state.isolated.size || state.isolated.has(groups[i]);
        pixels.set(on ? PALETTE[groups[i]] : [20, 22, 26], at);
        pixels[at + 3] = 255;
      }
    },
    plot(context, card, width, height) {
      const shares = perStep(encoder, card, (begin, end) => {
        const here = new Float64Array(state.k);
        for (let i = begin; i < end; i++) here[groups[i]] += 1 / (end - begin);
        return here;
      });
      plotSteps(context, width, height, shares.length, 80, (step, row) => {
        let sum = 0, group = 0;
        if (!isFilled(encoder, firstToken(encoder, card.number, step))) return [60, 64, 70];
        while (group < state.k - 1 && (sum += shares[step][group]) < (row + 0.5) / 80) group++;
        return !state.isolated.size || state.isolated.has(group) ? PALETTE[group] : [60, 64, 70];
      });
    },
    describe: token => nameOf(groups[token]),
  };
  return layer;
}
const nameOf = group => state.names[group] || `cluster ${group + 1}`;
function surpriseLayer(encoder) {
  const range = data.encoders[encoder].surprise, map = colormaps.surprise;
  if (!range) return null;
  const bytes = surpriseOf(encoder), error = token => range.low + (bytes[token] - 1) / 254 * (range.high - range.low);
  const share = token => (error(token) - range.dark) / (range.bright - range.dark || 1);
  return {
    range, error,
    paint(pixels, begin, end) {
      paintMap(pixels, map, end - begin, i => share(begin + i));
      for (let i = begin, at = 3; i < end; i++, at += 4) if (!bytes[i]) pixels[at] = 0;
    },
    plot(context, card, width, height) {
      const means = perStep(encoder, card, (begin, end) => { let sum = 0; for (let i = begin; i < end; i++) sum += error(i); return sum / (end - begin); });
      plotCurve(context, means, width, height, cssColor("--s4"), Math.min(...means), Math.max(...means));
    },
    describe: token => bytes[token] ? `error ${error(token).toFixed(3)}` : "never hidden",
  };
}
const MAKERS = { pca: pcaLayer, similarity: similarityLayer, clusters: clusterLayer, surprise: surpriseLayer, compare: pcaLayer };

// From the state to what is seen. Features that a query needs are loaded first; all others fill the layers in slices of
// time, those nearest to what is visible first.
function missing() {
  const { mode, query, region, pins } = state, loads = [];
  for (const encoder of state.shown) {
    const store = features(encoder), moments = mode === "compare" ? [pins.A, pins.B] : mode === "similarity" ? [query] : mode === "pca" ? [region] : [];
    for (const each of moments) {
      if (!each) continue;
      const chunk = store.chunkAt(firstToken(encoder, each.card.number, each.card.stepAt(encoder, each.second)));
      if (!chunk.features) loads.push(store.load(chunk));
    }
    if ((mode === "clusters" || mode === "pca" && state.foreground) && !store.sampled) loads.push(store.loadSample());
  }
  return loads;
}
const visibleToken = encoder => { const card = state.active ?? cards[0]; return firstToken(encoder, card.number, card.stepOf(encoder)); };
function fillChunk(layer, chunk) {
  if (layer.filled.has(chunk)) return;
  layer.fill(chunk);
  layer.filled.add(chunk);
}
async function fillRest(encoder, layer) {
  const store = features(encoder), rest = new Set(store.chunks.filter(chunk => !layer.filled.has(chunk)));
  const take = () => {
    const at = visibleToken(encoder), distance = chunk => Math.max(chunk.begin - at, at - chunk.end, 0);
    let best = null;
    for (const chunk of rest) if (!best || distance(chunk) < distance(best)) best = chunk;
    rest.delete(best);
    return best;
  };
  let drawn = performance.now(), paused = drawn;
  for (let chunk = take(), next; chunk; chunk = next) {
    const loaded = store.load(chunk);
    next = take();
    await loaded;
    if (next) store.load(next).catch(() => {});  // reported when it is awaited
    if (layers[encoder] !== layer) return;
    if (!chunk.features) await store.load(chunk);
    fillChunk(layer, chunk);
    const now = performance.now();
    if (!next || now - drawn > 100) { layer.finish?.(); redraw(); drawn = now; }
    if (now - paused > 12) { await new Promise(resolve => setTimeout(resolve)); paused = performance.now(); }
  }
}
function reportFailure(error) { $("error").textContent = `Features cannot be loaded (${error.message}); start tubelet view --serve again.`; }
function compute() {
  for (const encoder of state.shown) {
    const layer = layers[encoder] = MAKERS[state.mode](encoder);
    if (!layer?.fill) continue;
    const store = features(encoder), { query } = state;
    const near = [visibleToken(encoder), ...(state.mode === "similarity" ? [firstToken(encoder, query.card.number, query.card.stepAt(encoder, query.second))] : [])].map(token => store.chunkAt(token));
    for (const chunk of store.served ? near.filter(each => each.features) : store.chunks) fillChunk(layer, chunk);
    layer.finish?.();
    if (store.served) fillRest(encoder, layer).catch(reportFailure);
  }
  if (state.mode === "compare") computePairs();
}
function redraw() {
  for (const card of cards) if (card.loaded) card.draw(true);
  drawComparison();
  drawLegend();
}
let updates = 0;
function update() {
  const loads = SERVED ? missing() : [], own = ++updates;
  if (loads.length) {
    for (const encoder of state.shown) layers[encoder] = null;  // until then
    Promise.all(loads).then(() => { if (own === updates) update(); }, reportFailure);
    return;
  }
  compute();
  redraw();
}
let pending = 0;
function updateSoon() { cancelAnimationFrame(pending); pending = requestAnimationFrame(update); }

function arrange() {  // after a change of the encoders or columns that are shown
  state.shown = data.encoders.map((_, number) => number).filter(number => {
    const { model, encoder } = data.encoders[number], own = data.encoders.filter(each => each.model === model);
    return encoder === state.encoderName || !own.some(each => each.encoder === state.encoderName) && own[0] === data.encoders[number];
  });
  const names = [...new Set(state.shown.flatMap(encoder => data.encoders[encoder].levels.map(level => level.name)))];
  $("level").replaceChildren(...names.map((name, number) => { const option = element("option", "", name); option.value = number; return option; }));
  $("level").value = state.level = Math.min(state.level, names.length - 1);
  $("level-row").hidden = names.length < 2;
  for (const card of cards) card.arrange();
  update();
}
function setMode(mode) {
  state.mode = mode;
  for (const button of document.querySelectorAll("[data-mode]")) button.setAttribute("aria-pressed", button.dataset.mode === mode);
  for (const part of document.querySelectorAll("[data-for]")) part.hidden = part.dataset.for !== mode;
  $("compare").hidden = mode !== "compare";
  document.body.classList.toggle("groups", mode === "clusters");  // colors of groups do not blend
  if (mode === "similarity" && !state.query) choose(cards[0], [0.5, 0.5, 0.5, 0.5]);
  if (mode === "compare") pinDefaults();
  update();
  if (mode === "compare") $("compare").scrollIntoView({ block: "nearest", behavior: "instant" });
}
function pinDefaults() {
  const other = cards.find(card => card !== cards[0] && card.file.video === cards[0].file.video) ?? (cards[0].file.video ? cards[0] : cards.at(-1));  // images have an embedding of their own
  state.pins.A ??= { card: cards[0], second: cards[0].time };
  state.pins.B ??= { card: other, second: other === cards[0] ? (cards[0].time + cards[0].file.duration / 3) % (cards[0].file.duration || 1) : other.time };
}
function choose(card, box) { state.query = { card, second: card.time, box }; }
function clicked(card, [x, y], encoder) {
  if (!layers[encoder]) return;
  if (state.mode === "clusters") return toggleCluster(layers[encoder].groups[tokenAt(card, encoder, card.stepOf(encoder), x, y)]);
  if (state.mode === "compare") return;
  choose(card, [x, y, x, y]);
  state.mode === "similarity" ? update() : setMode("similarity");
}
function dragged(card, points) {
  if (state.mode === "pca") {
    state.region = { card, points, second: card.time };
    setForeground(0);
    return update();
  }
  choose(card, bounds(points));
  state.mode === "similarity" ? update() : setMode("similarity");
}
function toggleCluster(group) {
  state.isolated.has(group) ? state.isolated.delete(group) : state.isolated.add(group);
  redraw();
}
function setForeground(percent) {
  state.foreground = percent;
  $("foreground").value = percent;
  output("foreground", percent ? `${100 - percent} %` : "off");
}
const output = (id, text) => { $(id).parentElement.querySelector("output").textContent = text; };

function drawLegend() {
  const { mode } = state, layer = layers[state.shown[0]], missing = data.encoders[state.shown[0]].note;
  $("legend").textContent = MODES[mode].legend + (data.files.some(file => file.video) ? ` Under a video: ${MODES[mode].timeline}.` : "");
  $("colorbar").hidden = !(mode === "similarity" && layer && !state.threshold || mode === "surprise" && layer);
  if (!$("colorbar").hidden) {
    const context = document.querySelector("#colorbar canvas").getContext("2d"), image = context.createImageData(128, 1);
    paintMap(image.data, colormaps[mode], 128, i => i / 127);
    context.putImageData(image, 0, 0);
    $("low").textContent = mode === "similarity" ? layer.low.toFixed(2) : "expected";
    $("high").textContent = mode === "similarity" ? layer.high.toFixed(2) : "surprising";
  }
  $("surprise-note").textContent = layer ? "Each patch was hidden with blocks around it, as in training." : `There is no surprise for this model. ${missing}`;
  $("all-tokens").disabled = !state.region && !state.foreground;
  if (mode === "similarity" && layer && state.threshold) {
    const above = layer.values.reduce((count, value) => count + (value >= state.threshold), 0);
    $("answer").textContent = `${(100 * above / layer.values.length).toFixed(1)} % of all patches are above the threshold.`;
  } else $("answer").textContent = "";
  if (mode === "clusters" && layer) drawNames(layer);
  const { error, largest, directions } = data.encoders[state.shown[0]].levels[levelOf(state.shown[0])];
  $("error").textContent = `Features of ${encoderName(state.shown[0])}, ${levelName()}, are projected to ${directions} directions of a byte each. Similarities differ from the exact ones by ${error.toFixed(4)} on average, 99 % of them by less than ${largest.toFixed(4)}.`;
}
function drawNames(layer) {
  const rows = layer.shares.map((share, group) => {
    const row = element("div"), chip = element("button"), input = element("input");
    chip.type = "button";
    chip.style.background = `rgb(${PALETTE[group]})`;
    chip.title = "Show only this cluster";
    chip.setAttribute("aria-pressed", state.isolated.has(group));
    chip.setAttribute("aria-label", `Only ${nameOf(group)}`);
    chip.addEventListener("click", () => toggleCluster(group));
    Object.assign(input, { type: "text", value: state.names[group] ?? "", placeholder: `cluster ${group + 1}`, maxLength: 60 });
    input.setAttribute("aria-label", `Name of cluster ${group + 1}`);
    input.addEventListener("change", () => { state.names[group] = input.value.trim(); });
    row.append(chip, input, `${(100 * share).toFixed(0)} %`);
    return row;
  });
  if (!$("names").contains(document.activeElement) || $("names").childElementCount !== rows.length) $("names").replaceChildren(...rows);
  else [...$("names").children].forEach((row, group) => row.firstChild.setAttribute("aria-pressed", state.isolated.has(group)));
}
function activate(card) {
  if (state.active === card) return;
  state.active?.box.classList.remove("active");
  state.active = card;
  card.box.classList.toggle("active", cards.length > 1);
}
function setOpacity(value) {
  state.opacity = Math.min(1, Math.max(0, value));
  $("opacity").value = state.opacity;
  output("opacity", `${Math.round(100 * state.opacity)} %`);
  for (const card of cards) for (const screen of card.screens) if (screen.overlay) screen.overlay.style.opacity = state.opacity;
}
function setLevel(level) {
  $("level").value = state.level = level;
  update();
}
function slider(id, show, change) {
  const react = event => { output(id, show(Number($(id).value))); if (event) change(Number($(id).value)); };
  $(id).addEventListener("input", react);
  react();
}

const colormaps = Object.fromEntries(Object.entries(data.colormaps).map(([name, text]) => [name, Uint8Array.from(text.match(/../g), byte => parseInt(byte, 16))]));
const cards = data.files.map((file, number) => new Card(file, number));
$("items").append(...cards.map(card => card.box));

for (const button of document.querySelectorAll("[data-mode]")) button.addEventListener("click", () => setMode(button.dataset.mode));
slider("opacity", value => `${Math.round(100 * value)} %`, setOpacity);
slider("temperature", value => (10 ** value).toFixed(2), value => { state.temperature = 10 ** value; updateSoon(); });
slider("threshold", value => value ? value.toFixed(2) : "off", value => { state.threshold = value; redraw(); });
slider("k", value => value, value => { state.k = value; state.isolated.clear(); updateSoon(); });
slider("lines", value => value, value => { state.lines = value; drawComparison(); });
slider("foreground", value => value ? `${100 - value} %` : "off", value => { state.foreground = value; state.region = null; updateSoon(); });
$("invert").addEventListener("change", event => { state.invert = event.target.checked; if (state.foreground) update(); });
$("all-tokens").addEventListener("click", () => { state.region = null; setForeground(0); update(); });
$("path").addEventListener("change", event => { state.follow = event.target.checked; update(); });
$("smooth").addEventListener("change", event => { state.smooth = event.target.checked; document.body.classList.toggle("smooth", state.smooth); });
$("original").addEventListener("change", event => { state.original = event.target.checked; arrange(); });
$("level").addEventListener("change", event => setLevel(Number(event.target.value)));
$("encoder").addEventListener("change", event => { state.encoderName = event.target.value; arrange(); });
$("draw").addEventListener("click", event => {
  state.drawing = !state.drawing;
  event.target.setAttribute("aria-pressed", state.drawing);
  document.body.classList.toggle("drawing", state.drawing);
});
const encoderNames = [...new Set(data.encoders.map(each => each.encoder))];
$("encoder").append(...encoderNames.map(name => { const option = element("option", "", name); option.value = name; return option; }));
$("encoder-row").hidden = encoderNames.length < 2;

function moveQuery(dx, dy) {
  const { query } = state;
  if (!query) return;
  const encoder = state.shown[0], [, rows, columns] = data.encoders[encoder].grids[query.card.number], clamp = value => Math.min(0.9999, Math.max(0, value));
  const [x0, y0, x1, y1] = query.box;
  query.box = [clamp(x0 + dx / columns), clamp(y0 + dy / rows), clamp(x1 + dx / columns), clamp(y1 + dy / rows)];
  update();
}
document.addEventListener("keydown", event => {
  const { target } = event, card = state.active;
  if (event.ctrlKey || event.metaKey || target.matches("input[type=text], select")) return;
  if (target.matches("input[type=range]") && event.key.startsWith("Arrow")) return;
  if (target.matches("button, input[type=checkbox]") && event.key === " ") return;
  const move = by => {
    const times = data.encoders[state.shown[0]].times[card.number], step = card.stepOf(state.shown[0]);
    card.video?.pause();
    card.seek(event.shiftKey ? card.time + by : times[Math.min(times.length - 1, Math.max(0, step + by))]);
  };
  const actions = {
    " ": () => card.play(),
    ArrowLeft: () => event.altKey ? moveQuery(-1, 0) : move(-1),
    ArrowRight: () => event.altKey ? moveQuery(1, 0) : move(1),
    ArrowUp: event.altKey && (() => moveQuery(0, -1)),
    ArrowDown: event.altKey && (() => moveQuery(0, 1)),
    "[": () => setOpacity(state.opacity - 0.1),
    "]": () => setOpacity(state.opacity + 0.1),
    l: () => setLevel((state.level + 1) % $("level").options.length),
    e: () => card.savePng(),
  };
  Object.keys(MODES).forEach((mode, number) => { actions[number + 1] = () => setMode(mode); });
  if (!actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
});
let lastWidth = innerWidth;
addEventListener("resize", () => { if (innerWidth !== lastWidth) { lastWidth = innerWidth; redraw(); } });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);

document.body.classList.add("smooth");
$("settings").open = innerWidth > 860;
$("original").checked = state.original = innerWidth > 960 && !several;
activate(cards[0]);
requestAnimationFrame(() => setTimeout(() => {  // after the first paint
  arrange();
  setMode("pca");
  const near = new IntersectionObserver(changes => {
    for (const { target, isIntersecting } of changes) if (isIntersecting) { const card = cards[target.id.slice(5)]; card.load(); card.draw(true); }
  }, { rootMargin: "600px 0px" });
  cards.forEach(card => near.observe(card.box));
}));
