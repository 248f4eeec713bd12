// Two frames, and lines between patches that are each other's nearest neighbors.

const comparison = { pairs: [], hovered: null, frames: {} };
const compareCanvas = document.querySelector("#compare canvas");

function grabFrame({ card, second }) {  // a frame at a time, from a video of its own
  const key = `${card.number}:${second}`;
  if (comparison.frames[key]) return comparison.frames[key];
  card.load();
  const canvas = element("canvas");
  [canvas.width, canvas.height] = [card.file.width, card.file.height];
  const draw = source => { drawMedia(canvas.getContext("2d"), source, canvas.width, canvas.height); drawComparison(); };
  if (!card.file.video) card.image.decode().then(() => draw(card.image));
  else {
    const video = element("video");
    Object.assign(video, { muted: true, playsInline: true, preload: "auto", src: card.video.src });
    video.addEventListener("loadeddata", () => { video.currentTime = second || 0.001; }, { once: true });
    video.addEventListener("seeked", () => draw(video), { once: true });
  }
  return comparison.frames[key] = canvas;
}
function computePairs() {
  const encoder = state.shown[0], grids = data.encoders[encoder].grids, found = features(encoder);
  const [left, right] = [state.pins.A, state.pins.B].map(({ card, second }) => {
    const [, rows, columns] = grids[card.number], begin = firstToken(encoder, card.number, card.stepAt(encoder, second));
    return { range: [begin, begin + rows * columns], rows, columns };
  });
  const center = (token, { rows, columns }) => [(token % columns + 0.5) / columns, (Math.floor(token / columns) + 0.5) / rows];
  comparison.pairs = Features.mutualNeighbors(found.at(left.range[0]), left.range, found.at(right.range[0]), right.range)
    .map(([i, j, similarity]) => ({ from: center(i, left), to: center(j, right), similarity }));
}
function placeFrames() {
  const { A, B } = state.pins, { clientWidth } = compareCanvas.parentElement, { paddingLeft } = getComputedStyle(compareCanvas.parentElement), width = clientWidth - 2 * parseFloat(paddingLeft), narrow = innerWidth <= 860;
  const most = narrow ? width : Math.min((width - 90) / 2, 0.6 * innerHeight * A.card.file.width / A.card.file.height);
  const size = pin => [most, most * pin.card.file.height / pin.card.file.width];
  const [wA, hA] = size(A), [wB, hB] = size(B);
  if (narrow) return { width, height: hA + 40 + hB, A: [0, 0, wA, hA], B: [0, hA + 40, wB, hB] };
  return { width, height: Math.max(hA, hB), A: [0, 0, wA, hA], B: [width - wB, 0, wB, hB] };
}
function drawComparison() {
  if (state.mode !== "compare") return;
  const places = placeFrames(), context = sizeCanvas(compareCanvas, places.width, places.height);
  const shown = comparison.pairs.slice(0, state.lines), { hovered } = comparison;
  for (const side of ["A", "B"]) {
    const [x, y, w, h] = places[side], pin = state.pins[side];
    context.drawImage(grabFrame(pin), x, y, w, h);
    context.font = "600 14px system-ui, sans-serif";
    const caption = `${side}  ${pin.card.file.name}${pin.card.file.video ? `  ${formatTime(pin.second)}` : ""}`;
    context.fillStyle = "rgba(0,0,0,.62)";
    context.fillRect(x, y, Math.min(w, context.measureText(caption).width + 16), 24);
    context.fillStyle = "#fff";
    context.fillText(caption, x + 8, y + 17, w - 16);
  }
  const at = ([x, y], [left, top, w, h]) => [left + x * w, top + y * h];
  for (const pair of shown) {
    const [x0, y0] = at(pair.from, places.A), [x1, y1] = at(pair.to, places.B);
    context.globalAlpha = hovered ? (pair === hovered ? 1 : 0.12) : 0.85;
    context.strokeStyle = context.fillStyle = `hsl(${360 * pair.from[0] * 0.8} 75% ${38 + 32 * pair.from[1]}%)`;
    context.lineWidth = pair === hovered ? 3 : 1.6;
    context.beginPath();
    context.moveTo(x0, y0);
    context.lineTo(x1, y1);
    context.stroke();
    for (const [x, y] of [[x0, y0], [x1, y1]]) { context.beginPath(); context.arc(x, y, pair === hovered ? 5 : 3, 0, 7); context.fill(); }
  }
  context.globalAlpha = 1;
  $("matches").textContent = `${shown.length} of ${comparison.pairs.length} pair${comparison.pairs.length === 1 ? "" : "s"}` + (hovered ? `, cosine ${hovered.similarity.toFixed(3)}` : "");
}
const pointAt = event => {
  const [x, y, w, h] = placeFrames().A, px = (event.offsetX - x) / w, py = (event.offsetY - y) / h;
  const distance = pair => Math.hypot(pair.from[0] - px, pair.from[1] - py), shown = comparison.pairs.slice(0, state.lines);
  const best = shown.reduce((found, pair) => !found || distance(pair) < distance(found) ? pair : found, null);
  comparison.hovered = best && px <= 1 && distance(best) < 0.12 ? best : null;
  drawComparison();
};
for (const kind of ["pointermove", "pointerdown"]) compareCanvas.addEventListener(kind, pointAt);
compareCanvas.addEventListener("pointerleave", event => { if (event.pointerType === "mouse") { comparison.hovered = null; drawComparison(); } });
