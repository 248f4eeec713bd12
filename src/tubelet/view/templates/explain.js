// The scene of the explain page: one input's tokens in every step. All views show the same token, time step and mask.
const scene = readJson("scene");
const [T, H, W] = scene.grid, PER = H * W, N = T * PER, LEVELS = scene.level_blocks.length;
const AXES = ["time", "row", "column"];

const bytes = text => Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
const floats = text => new Float32Array(bytes(text).buffer);
const decodeMask = mask => ({
  ...mask,
  hidden: bytes(mask.hidden), weights: floats(mask.weights), student: bytes(mask.student), fused: bytes(mask.fused),
  predicted: mask.predicted && bytes(mask.predicted), errors: mask.errors && floats(mask.errors),
});
const draws = scene.draws.map(draw => ({ ...draw, masks: draw.masks.map(decodeMask) })).filter(draw => draw.masks.length);
const teacher = bytes(scene.teacher);
const blends = [...scene.blends.map(blend => ({ momentum: blend.momentum, colors: bytes(blend.colors) })), { momentum: 1, colors: teacher }];
const heat = { loss: bytes(scene.heat.loss), weight: bytes(scene.heat.weight) };

const state = {
  token: scene.chosen, hover: null, time: Math.floor(scene.chosen / PER), mask: 0, draw: 0, level: LEVELS - 1, placed: 1,
  context_weight: scene.context_weight, blend: blends.length - 1,
};
window.tubelet = { scene, state, draws };  // for a console, and for tests

const format = (value, digits = 3) => Number(value).toLocaleString("en-US", { maximumSignificantDigits: digits });
const place = token => [Math.floor(token / PER), Math.floor(token % PER / W), token % W];
const mask = () => draws[state.draw].masks[state.mask];
const make = (tag, attributes = {}, parent = null) => {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) name in made ? made[name] = value : made.setAttribute(name, value);
  parent?.append(made);
  return made;
};

const views = [];
let pending = false;
function update(changes = {}) {
  Object.assign(state, changes);
  if (pending) return;
  pending = true;
  requestAnimationFrame(() => { pending = false; views.forEach(view => view()); });
}
function select(token) { update({ token, time: place(token)[0] }); }

// ---- Maps: a time step of the token grid, as a canvas that answers pointer and keyboard.

const small = new OffscreenCanvas(W, H), cells = small.getContext("2d");
function paintCells(context, width, height, color) {
  const image = cells.createImageData(W, H);
  for (let i = 0; i < PER; i++) {
    const rgba = color(state.time * PER + i);
    if (rgba) image.data.set(rgba, 4 * i);
  }
  cells.putImageData(image, 0, 0);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, width, height);
}
const rgb = (array, token, level = 0) => { const at = 3 * (level * N + token); return [array[at], array[at + 1], array[at + 2], 255]; };
const heated = (scale, share) => { const at = 3 * Math.round(255 * Math.min(Math.max(share, 0), 1)); return [scale[at], scale[at + 1], scale[at + 2], 255]; };
const paintFrame = (context, width, height) => { context.imageSmoothingEnabled = true; context.drawImage(frames[state.time * scene.frames_per_step], 0, 0, width, height); };

function strokeBorders(context, width, height, differs, color, thickness) {
  const x = width / W, y = height / H, first = state.time * PER;
  context.beginPath();
  for (let h = 0; h < H; h++) for (let w = 0; w < W; w++) {
    const token = first + h * W + w;
    if (w + 1 < W && differs(token, token + 1)) { context.moveTo((w + 1) * x, h * y); context.lineTo((w + 1) * x, (h + 1) * y); }
    if (h + 1 < H && differs(token, token + W)) { context.moveTo(w * x, (h + 1) * y); context.lineTo((w + 1) * x, (h + 1) * y); }
  }
  context.strokeStyle = color; context.lineWidth = thickness; context.stroke();
}
const outlineMask = (context, width, height) =>
  strokeBorders(context, width, height, (a, b) => mask().hidden[a] !== mask().hidden[b], cssColor("--target"), 2 * devicePixelRatio);

function frameToken(context, width, height, token, color) {
  const [t, h, w] = place(token), x = width / W, y = height / H;
  if (t !== state.time) return;
  context.lineWidth = 4 * devicePixelRatio; context.strokeStyle = "#0009"; context.strokeRect(w * x, h * y, x, y);
  context.lineWidth = 2 * devicePixelRatio; context.strokeStyle = color; context.strokeRect(w * x, h * y, x, y);
}

function tokenMap(host, label, paint) {
  const figure = make("div", { className: "map" }, host);
  const title = make("div", { className: "map-title", textContent: label }, figure);
  const canvas = make("canvas", { tabIndex: 0 }, figure);
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", `${label}: a click or the arrow keys choose a token`);
  canvas.style.aspectRatio = `${W} / ${H}`;
  const at = event => {
    const box = canvas.getBoundingClientRect();
    const w = Math.floor((event.clientX - box.left) / box.width * W), h = Math.floor((event.clientY - box.top) / box.height * H);
    return w >= 0 && w < W && h >= 0 && h < H ? state.time * PER + h * W + w : null;
  };
  canvas.addEventListener("pointermove", event => update({ hover: at(event) }));
  canvas.addEventListener("pointerleave", () => update({ hover: null }));
  canvas.addEventListener("click", event => { const token = at(event); if (token !== null) select(token); });
  canvas.addEventListener("keydown", event => {
    const [t, h, w] = place(state.token);
    const moves = { ArrowLeft: [t, h, w - 1], ArrowRight: [t, h, w + 1], ArrowUp: [t, h - 1, w], ArrowDown: [t, h + 1, w], "[": [t - 1, h, w], "]": [t + 1, h, w] };
    const next = moves[event.key];
    if (!next) return;
    event.preventDefault();
    const [nt, nh, nw] = next;
    if (nt >= 0 && nt < T && nh >= 0 && nh < H && nw >= 0 && nw < W) select(nt * PER + nh * W + nw);
  });
  const draw = () => {
    const width = Math.round(canvas.clientWidth * devicePixelRatio), height = Math.round(width * H / W);
    if (!width) return;
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    const changed = paint(context, width, height);
    if (typeof changed === "string") title.textContent = changed;
    if (state.hover !== null && state.hover !== state.token) frameToken(context, width, height, state.hover, "#fff9");
    frameToken(context, width, height, state.token, "#fff");
  };
  new ResizeObserver(draw).observe(canvas);
  views.push(draw);
  return canvas;
}

function slider(host, label, options, changed, value) {
  const box = make("label", { className: "slider" }, host);
  make("span", { textContent: label }, box);
  const input = make("input", { type: "range", ...options }, box);
  const output = make("output", {}, box);
  input.setAttribute("aria-label", label);
  input.addEventListener("input", () => changed(Number(input.value)));
  views.push(() => { const [number, text] = value(); input.value = number; output.textContent = text; });
}

function choice(host, label, names, key) {
  const group = make("div", { className: "choice" }, host);
  group.setAttribute("role", "group"); group.setAttribute("aria-label", label);
  names.forEach((name, i) => {
    const button = make("button", { type: "button", textContent: name }, group);
    button.addEventListener("click", () => update({ [key]: i }));
    views.push(() => button.setAttribute("aria-pressed", state[key] === i));
  });
}

// ---- The views, by the name of the element that they fill.

const paintMask = (context, width, height) => {
  paintFrame(context, width, height);
  paintCells(context, width, height, token => mask().hidden[token] ? scene.colors.target : null);
  outlineMask(context, width, height);
};
const paintStudent = (context, width, height) => {
  context.fillStyle = cssColor("--rule"); context.fillRect(0, 0, width, height);
  const x = width / W, y = height / H;
  context.save();
  context.beginPath();
  for (let i = 0; i < PER; i++) if (!mask().hidden[state.time * PER + i]) context.rect(i % W * x, Math.floor(i / W) * y, x, y);
  context.clip();
  paintFrame(context, width, height);
  context.restore();
};
const where = token => { const [t, h, w] = place(token); return (T > 1 ? `time step ${t}, ` : "") + `row ${h}, column ${w}`; };
const fate = token => mask().hidden[token] ? "hidden: a target token" : "visible: a context token";

const fill = {
  bar(host) {
    new ResizeObserver(() => document.documentElement.style.setProperty("--bar-height", `${host.offsetHeight}px`)).observe(host);
    const map = make("div", { className: "mini" }, host), words = make("div", { className: "bar-words" }, host), controls = make("div", { className: "bar-controls" }, host);
    tokenMap(map, "The token that all figures follow", paintMask);
    views.push(() => {
      words.innerHTML = `<b>token ${state.token}</b> ${where(state.token)} <span class="${mask().hidden[state.token] ? "t" : "c"}">${fate(state.token)}</span>`;
    });
    if (T > 1) slider(controls, "time step", { min: 0, max: T - 1, step: 1 }, time => select(time * PER + state.token % PER), () => [state.time, `${state.time} (of 0 to ${T - 1}), ${format(scene.times[state.time * scene.frames_per_step])} s`]);
    if (draws[0].masks.length > 1) choice(controls, "mask", draws[0].masks.map((_, i) => `mask ${i + 1}`), "mask");
  },
  patches(host) {
    tokenMap(host, "Choose a token", (context, width, height) => {
      paintFrame(context, width, height);
      context.beginPath();
      for (let w = 1; w < W; w++) { context.moveTo(w * width / W, 0); context.lineTo(w * width / W, height); }
      for (let h = 1; h < H; h++) { context.moveTo(0, h * height / H); context.lineTo(width, h * height / H); }
      context.strokeStyle = "#fff8"; context.lineWidth = devicePixelRatio; context.stroke();
    });
    const detail = make("div", { className: "detail" }, host), pieces = make("div", { className: "tubelet" }, detail), words = make("p", {}, detail);
    const canvases = Array.from({ length: scene.frames_per_step }, () => make("canvas", { width: scene.patch, height: scene.patch, className: "px" }, pieces));
    views.push(() => {
      const token = state.hover ?? state.token, [t, h, w] = place(token), p = scene.patch;
      canvases.forEach((canvas, i) => canvas.getContext("2d").drawImage(frames[t * scene.frames_per_step + i], w * p, h * p, p, p, 0, 0, p, p));
      const sizes = [...(scene.image ? [] : [scene.frames_per_step]), p, p, 3];
      words.innerHTML = `<b>Token ${token}</b> = ${T > 1 ? `${t} · ${PER} + ` : ""}${h} · ${W} + ${w}: ${where(token)}.<br>${sizes.join(" × ")} = ${format(sizes.reduce((a, b) => a * b), 9)} numbers → one vector of ${scene.width}.`;
    });
  },
  hands(host) {
    const base = 10000, radius = 21, gap = 50;
    const angle = (axis, token, pair) => place(token)[axis] * scene.scales[axis] * base ** (-pair / Math.max(scene.pairs, 1));
    window.tubelet.angle = angle;
    AXES.forEach((name, axis) => {
      const row = make("div", { className: "hands" }, host);
      const label = make("div", { className: "map-title" }, row);
      const width = gap * scene.pairs, ns = "http://www.w3.org/2000/svg", svg = document.createElementNS(ns, "svg");
      svg.setAttribute("viewBox", `0 0 ${width} 48`); svg.setAttribute("role", "img"); svg.style.maxWidth = `${width * 1.1}px`;
      row.append(svg);
      const add = (tag, attributes) => { const part = document.createElementNS(ns, tag); for (const [key, value] of Object.entries(attributes)) part.setAttribute(key, value); svg.append(part); return part; };
      const hands = Array.from({ length: scene.pairs }, (_, pair) => {
        const x = gap * (pair + 0.5), line = kind => add("line", { x1: x, y1: 24, x2: x + radius - 2, y2: 24, class: kind });
        add("circle", { cx: x, cy: 24, r: radius });
        return { x, other: line("other"), own: line(name) };
      });
      views.push(() => {
        hands.forEach(({ x, own, other }, pair) => {
          own.setAttribute("transform", `rotate(${-angle(axis, state.token, pair) * 180 / Math.PI} ${x} 24)`);
          other.setAttribute("transform", `rotate(${-angle(axis, state.hover ?? state.token, pair) * 180 / Math.PI} ${x} 24)`);
        });
        const position = place(state.token)[axis], scaled = position * scene.scales[axis];
        label.innerHTML = `<b class="key bg-${name}"></b>${name} ${position}${scene.scales[axis] === 1 ? "" : ` → ${format(scaled)} after scaling`}; fastest pair turned by ${format(angle(axis, state.token, 0))} rad, slowest by ${format(angle(axis, state.token, scene.pairs - 1), 2)}`;
        svg.setAttribute("aria-label", label.textContent);
      });
    });
    const words = make("p", { className: "where" }, host);
    views.push(() => {
      const other = state.hover ?? state.token;
      words.textContent = other === state.token
        ? "Point at another token in any map: its hands appear in gray. Attention sees only the angle between the two."
        : `Gray: token ${other}. It differs by ${AXES.map((name, axis) => `${place(other)[axis] - place(state.token)[axis]} in ${name}`).join(", ")}; hands of an axis in which two tokens agree lie on each other.`;
    });
  },
  mask(host) {
    tokenMap(host, "Hidden tokens", paintMask);
    const detail = make("div", { className: "detail" }, host);
    slider(detail, "draw of the mask", { min: 0, max: draws.length - 1, step: 1 }, draw => update({ draw }), () => [state.draw, draws[state.draw].name]);
    if (draws[0].masks.length > 1) choice(detail, "mask", draws[0].masks.map((_, i) => `mask ${i + 1}`), "mask");
    const words = make("p", {}, detail);
    views.push(() => {
      const hidden = mask().hidden.reduce((sum, value) => sum + value, 0);
      words.innerHTML = `${mask().blocks} rectangle${mask().blocks > 1 ? "s" : ""} of ${mask().shape.join(" × ")} patches, through all ${T > 1 ? `${T} time steps` : "of the image"}:<br><span class="c">${format(N - hidden, 9)} tokens go to the X-encoder</span>, <span class="t">${format(hidden, 9)} are hidden</span> (${format(100 * hidden / N, 2)} %).`;
    });
  },
  student(host) {
    tokenMap(host, "What the student sees", paintStudent);
    scene.level_blocks.forEach((block, level) => tokenMap(host, `After block ${block}`, (context, width, height) => {
      paintCells(context, width, height, token => mask().hidden[token] ? null : rgb(mask().student, token, level));
      outlineMask(context, width, height);
    }));
  },
  fused(host) {
    tokenMap(host, "Fused context tokens", (context, width, height) => {
      paintCells(context, width, height, token => mask().hidden[token] ? null : rgb(mask().fused, token));
      outlineMask(context, width, height);
    });
  },
  places(host) {
    const canvas = make("canvas", { className: "places" }, host), controls = make("div", { className: "bar-controls" }, host);
    canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", "context and mask tokens, from the order of the sequence to their places in the grid");
    const shown = Math.min(T, 4), steps = Array.from({ length: shown }, (_, i) => Math.round(i * (T - 1) / Math.max(shown - 1, 1)));
    let running = 0;
    const play = make("button", { type: "button", textContent: "Put them in their places" }, controls);
    play.addEventListener("click", () => {
      cancelAnimationFrame(running);
      const began = performance.now();
      const step = now => {
        update({ placed: Math.min((now - began) / 1400, 1) });
        if (now - began < 1400) running = requestAnimationFrame(step);
      };
      running = requestAnimationFrame(step);
    });
    slider(controls, "from the sequence to the grid", { min: 0, max: 1, step: 0.01 }, placed => update({ placed }), () => [state.placed, state.placed < 0.02 ? "sequence" : state.placed > 0.98 ? "grid" : ""]);
    const draw = () => {
      const width = Math.round(canvas.clientWidth * devicePixelRatio), gap = 0.06 * width / shown;
      if (!width) return;
      const side = (width - gap * (shown - 1)) / shown / W, height = Math.round(side * H + 2);
      if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
      const context = canvas.getContext("2d"), tokens = [];
      context.clearRect(0, 0, width, height);
      steps.forEach((t, i) => { for (let j = 0; j < PER; j++) tokens.push([t * PER + j, i * (side * W + gap) + j % W * side, Math.floor(j / W) * side]); });
      const order = [...tokens.filter(([token]) => !mask().hidden[token]), ...tokens.filter(([token]) => mask().hidden[token])];
      const across = Math.floor(width / side), ease = state.placed * state.placed * (3 - 2 * state.placed);
      order.forEach(([token, x, y], i) => {
        const from = [i % across * side, Math.floor(i / across) * side], left = from[0] + (x - from[0]) * ease, top = from[1] + (y - from[1]) * ease;
        context.fillStyle = mask().hidden[token] ? cssColor("--target") : `rgb(${rgb(mask().fused, token).slice(0, 3)})`;
        context.fillRect(left + 0.5, top + 0.5, side - 1, side - 1);
        if (token === state.token) { context.strokeStyle = cssColor("--ink"); context.lineWidth = 2 * devicePixelRatio; context.strokeRect(left, top, side, side); }
      });
    };
    new ResizeObserver(draw).observe(canvas);
    views.push(draw);
  },
  prediction(host) {
    if (!mask().predicted) return;
    const controls = make("div", { className: "bar-controls wide" }, host);
    if (LEVELS > 1) choice(controls, "level", scene.level_blocks.map(block => `after block ${block}`), "level");
    const maps = make("div", { className: "maps" }, host);
    tokenMap(maps, "Teacher", (context, width, height) => paintCells(context, width, height, token => rgb(teacher, token, state.level)));
    tokenMap(maps, "Predicted", (context, width, height) => {
      paintCells(context, width, height, token => rgb(mask().predicted, token, state.level));
      outlineMask(context, width, height);
    });
    tokenMap(maps, "Error", (context, width, height) => {
      const values = mask().errors.subarray(state.level * N, (state.level + 1) * N), most = Math.max(...values);
      paintCells(context, width, height, token => heated(heat.loss, values[token] / most));
      outlineMask(context, width, height);
      return `Error, 0 to ${format(most, 2)}`;
    });
    const words = make("p", {}, host);
    views.push(() => { words.innerHTML = `Token ${state.token}, ${fate(state.token)}: L1 error ${format(mask().errors[state.level * N + state.token])} at this level, ${format(tokenError(mask(), state.token))} over all.`; });
  },
  weights(host) {
    tokenMap(host, "Weight of a context token", (context, width, height) => {
      const least = Math.min(...mask().weights.filter(weight => weight > 0));
      paintCells(context, width, height, token => mask().hidden[token] ? null : heated(heat.weight, least < 1 ? (mask().weights[token] - least) / (1 - least) : 1));
      for (const ring of [1.9, 2.9, 3.9, 4.9, 6.9, 9.9]) strokeBorders(context, width, height, (a, b) => !mask().hidden[a] && !mask().hidden[b] && distance(a) > ring !== distance(b) > ring, "#fffb", devicePixelRatio);
      outlineMask(context, width, height);
      return `Weight of a context token, ${format(least, 2)} to 1`;
    });
    const words = make("p", { className: "detail" }, host);
    views.push(() => {
      const hidden = mask().hidden[state.token], weight = mask().weights[state.token];
      words.innerHTML = hidden ? `Token ${state.token} is hidden: its error counts in full, in L<sub>predict</sub>.`
        : scene.distance_weighting ? `Token ${state.token} is visible, d = ${format(distance(state.token))} grid steps from the nearest hidden token: its error counts 1/√${format(distance(state.token))} = <b>${format(weight)}</b>.`
        : `Token ${state.token} is visible; this run weighs all visible tokens alike.`;
    });
  },
  sum(host) {
    if (!mask().errors) return;
    const box = make("div", { className: "sum" }, host);
    slider(host, "λ", { min: 0, max: 1, step: 0.01 }, context_weight => update({ context_weight }), () => [state.context_weight, format(state.context_weight, 2)]);
    views.push(() => {
      const rows = draws[state.draw].masks.map(losses), mean = part => rows.reduce((sum, row) => sum + row[part], 0) / rows.length;
      const total = row => row.prediction + state.context_weight * row.context, token = state.token, current = mask();
      const share = current.hidden[token]
        ? `one of ${format(rows[state.mask].targets, 9)} hidden tokens: ${format(tokenError(current, token))} / ${format(rows[state.mask].targets, 9)} = ${format(tokenError(current, token) / rows[state.mask].targets, 2)} of L<sub>predict</sub>`
        : `one of ${format(N - rows[state.mask].targets, 9)} visible tokens: ${format(current.weights[token])} × ${format(tokenError(current, token))} / ${format(N - rows[state.mask].targets, 9)} = ${format(current.weights[token] * tokenError(current, token) / (N - rows[state.mask].targets), 2)} of L<sub>context</sub>`;
      box.innerHTML = `<p class="equation">${format(mean("prediction"), 4)} + ${format(state.context_weight, 2)} · ${format(mean("context"), 4)} = <b data-total>${format(mean("prediction") + state.context_weight * mean("context"), 4)}</b></p>`
        + `<details${box.querySelector("details")?.open ? " open" : ""}><summary>Open the sum</summary>${rows.map((row, i) => `<p><b>Mask ${i + 1}</b>: L<sub>predict</sub> = mean of ${format(row.targets, 9)} errors = ${format(row.prediction, 4)}; L<sub>context</sub> = mean of ${format(N - row.targets, 9)} weighted errors = ${format(row.context, 4)}; together ${format(total(row), 4)}.</p>`).join("")}`
        + `<p>Token ${token} under mask ${state.mask + 1} is ${share}. Its error is the mean over levels: ${Array.from({ length: LEVELS }, (_, level) => format(current.errors[level * N + token])).join(", ")}.</p></details>`;
    });
  },
  blend(host) {
    tokenMap(host, "Features of the mixed network", (context, width, height) => paintCells(context, width, height, token => rgb(blends[state.blend].colors, token, state.level)));
    const detail = make("div", { className: "detail" }, host);
    slider(detail, "mix", { min: 0, max: blends.length - 1, step: 1 }, blend => update({ blend }), () => [state.blend, format(blends[state.blend].momentum)]);
    make("p", { innerHTML: "0 is the student, 1 the teacher. Each position is the real network with weights mix · teacher + (1 − mix) · student, run on this input and shown in the teacher's colors." }, detail);
    if (LEVELS > 1) choice(detail, "level", scene.level_blocks.map(block => `after block ${block}`), "level");
  },
};
const distance = token => 1 / mask().weights[token] ** 2;
const tokenError = (current, token) => { let sum = 0; for (let level = 0; level < LEVELS; level++) sum += current.errors[level * N + token]; return sum / LEVELS; };
function losses(current) {
  let prediction = 0, context = 0, targets = 0;
  for (let token = 0; token < N; token++) {
    const error = tokenError(current, token);
    if (current.hidden[token]) { prediction += error; targets++; } else context += current.weights[token] * error;
  }
  return { prediction: prediction / targets, context: context / (N - targets), targets };
}
Object.assign(window.tubelet, { losses, select, update });

// ---- Questions: an answer is checked when it is chosen.

const questions = [...document.querySelectorAll("fieldset.question")];
for (const question of questions) {
  question.addEventListener("change", event => {
    const right = event.target.value === "right";
    question.dataset.state = right ? "right" : "wrong";
    question.querySelector(".verdict").textContent = right ? "Yes. " : "Not quite; try another. ";
    question.querySelector(".because").hidden = !right;
    const done = questions.filter(each => each.dataset.state === "right").length;
    $("score").textContent = done === questions.length ? `All ${done} answered: you know V-JEPA 2.1.` : `${done} of ${questions.length} answered.`;
  });
}

const frames = scene.frames.map(source => make("img", { src: source }));
Promise.all(frames.map(frame => frame.decode())).then(() => {
  document.querySelectorAll("[data-view]").forEach(host => fill[host.dataset.view](host));
  update();
  document.documentElement.dataset.ready = "yes";
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => update());
