const { labels, files } = readJson("data");
const state = { threshold: 0, on: labels.map(() => true), search: "", order: "time", active: null };
const LANE = 18, CURVE = 46, AXIS = 18, LISTED = 300, OVERVIEW = 4000, OVERVIEW_PIXELS = 12000;
const FAINTEST = 0.25;

const visible = span => span[3] >= state.threshold && state.on[span[2]];
const opacity = score => FAINTEST + (1 - FAINTEST) * Math.min(1, Math.max(0, score));
function valueAt(curve, second) {
  let low = 0, high = curve.starts.length;
  while (low < high) { const middle = (low + high) >> 1; curve.starts[middle] <= second + 1e-6 ? low = middle + 1 : high = middle; }
  return low && second < curve.ends[low - 1] + 1e-6 ? curve.values[low - 1] : null;
}

// One file: an empty box until it comes near the window, and again once it is far away.
class Item {
  constructor(file, number) {
    Object.assign(this, { file, number, video: null, built: false, time: 0, zoom: 1, begin: 0 });
    this.box = element("article", "item");
    this.box.id = `file-${number}`;
    this.box.tabIndex = -1;
    this.box.append(element("h2", "", file.name), element("p", "where", this.describe()));
    this.box.addEventListener("pointerdown", () => activate(this));
    this.box.addEventListener("focusin", () => activate(this));
    this.body = element("div");
    const lanes = new Set(file.spans.map(span => span[2])).size * LANE + file.curves.length * CURVE;
    this.body.style.minHeight = `${file.duration ? 510 + Math.min(340, lanes) : 300}px`;  // about what it will have
    this.box.append(this.body);
  }
  describe() {
    const { file } = this, length = file.duration ? ` · ${formatTime(file.duration)}` : "";
    return `${file.path === file.name ? "" : file.path}${length}${file.note && file.link ? ` · ${file.note}` : ""}`.replace(/^ · /, "");
  }
  get spans() { return this.file.spans.filter(visible); }
  get now() { return this.video && this.video.readyState ? this.video.currentTime : this.time; }

  build() {
    if (this.built) return;
    this.built = true;
    this.body.style.minHeight = "";
    const stage = element("div", "stage"), screen = element("div", "screen");
    if (!this.file.link) screen.append(element("div", "fault", this.file.note || "There is nothing to show."));
    else if (this.file.duration) this.addVideo(screen);
    else this.addImage(screen);
    this.side = element("div", "side");
    stage.append(screen, this.side);
    this.nowLine = element("div", "now");
    this.body.append(stage, this.nowLine);
    if (this.file.duration) this.addTimeline();
    if (this.file.overlays.length) this.addOverlays();
    this.update();
  }
  tear() {
    if (!this.built || (this.video && !this.video.paused)) return;
    this.time = this.now;
    this.body.style.minHeight = `${this.body.offsetHeight}px`;
    if (this.video) { this.video.removeAttribute("src"); this.video.load(); }
    this.body.replaceChildren();
    this.video = this.canvas = this.strip = this.large = null;
    this.built = false;
  }
  addVideo(screen) {
    const video = this.video = element("video");
    Object.assign(video, { controls: true, preload: "metadata", playsInline: true, src: this.file.link });
    video.addEventListener("loadedmetadata", () => { if (this.time) video.currentTime = this.time; });
    for (const kind of ["timeupdate", "seeked", "pause"]) video.addEventListener(kind, () => this.showNow());
    video.addEventListener("play", () => {
      activate(this);
      for (const other of items) if (other !== this && other.video && !other.video.paused) other.video.pause();
      const tick = () => { if (this.video === video && !video.paused) { this.showNow(); requestAnimationFrame(tick); } };
      tick();
    });
    video.addEventListener("error", () => {
      if (this.video !== video || !video.hasAttribute("src")) return;
      this.time = this.now;
      this.video = null;
      screen.replaceChildren(element("div", "fault", `${this.file.path} cannot be played: it is not there, or this browser does not know its format.`));
    });
    screen.append(video);
  }
  addImage(screen) {
    const image = element("img");
    Object.assign(image, { src: this.file.link, alt: this.file.name });
    image.addEventListener("error", () => screen.replaceChildren(element("div", "fault", `${this.file.path} cannot be shown: it is not there, or this browser does not know its format.`)));
    screen.append(image);
  }
  addTimeline() {
    const lanes = this.lanes = element("div", "lanes");
    this.canvas = element("canvas");
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", `Timeline of ${this.file.name}`);
    this.playhead = element("div", "playhead");
    lanes.append(this.canvas, this.playhead);
    const zoom = element("div", "zoom"), less = element("button", "", "−"), more = element("button", "", "+");
    less.title = "show more of the video"; more.title = "zoom in";
    this.range = element("span");
    less.addEventListener("click", () => this.setZoom(this.zoom / 2));
    more.addEventListener("click", () => this.setZoom(this.zoom * 2));
    zoom.append(less, more, this.range);
    this.body.append(lanes, zoom);
    const seek = event => this.seek(this.secondAt(event.offsetX));
    this.canvas.addEventListener("pointerdown", event => {
      if (event.button || event.offsetX < this.left) return;
      this.canvas.setPointerCapture(event.pointerId);
      this.scrubbing = true;
      seek(event);
    });
    this.canvas.addEventListener("pointermove", event => { this.scrubbing ? seek(event) : this.hover(event); });
    for (const kind of ["pointerup", "pointercancel"]) this.canvas.addEventListener(kind, () => { this.scrubbing = false; });
    this.canvas.addEventListener("pointerleave", hideTip);
  }
  addOverlays() {
    this.strip = element("div", "overlays");
    this.large = element("figure", "large");
    this.large.append(element("img"), element("figcaption"));
    this.large.style.margin = "0";
    for (const overlay of this.file.overlays) {
      const figure = element("figure"), image = element("img");
      Object.assign(image, { loading: "lazy", src: overlay.link, alt: overlay.caption });
      figure.append(image, element("figcaption", "", this.file.duration ? formatTime(overlay.time) : overlay.caption));
      figure.addEventListener("click", () => this.seek(overlay.time));
      this.strip.append(figure);
    }
    if (this.file.duration) this.body.append(this.strip);
  }

  // What depends on the filter.
  update() {
    if (!this.built) return;
    this.drawTimeline();
    this.listSpans();
    this.showNow();
  }
  listSpans() {
    this.side.replaceChildren();
    if (this.large) this.side.append(this.large);
    const spans = this.spans, hidden = this.file.spans.length - spans.length;
    if (!this.file.spans.length) return;
    const order = { time: (a, b) => a[0] - b[0], score: (a, b) => a[3] - b[3], best: (a, b) => b[3] - a[3] }[state.order];
    const bar = element("div", "bar", `${spans.length} ${this.file.duration ? "span" : "label"}${spans.length === 1 ? "" : "s"}${hidden ? `, ${hidden} hidden` : ""}`);
    const list = element("div", "spans"), table = element("table");
    this.rows = [];
    spans.sort(order).slice(0, LISTED).forEach(span => {
      const row = table.insertRow(), name = row.insertCell(), key = element("i");
      key.style.background = labels[span[2]].color;
      name.append(key, labels[span[2]].name);
      name.title = labels[span[2]].name;
      if (this.file.duration) row.insertCell().textContent = formatTime(span[0]);
      row.insertCell().textContent = this.file.duration ? `${(span[1] - span[0]).toFixed(1)} s` : "";
      row.insertCell().textContent = span[3].toFixed(2);
      row.addEventListener("click", () => { this.seek(span[0]); });
      this.rows.push([row, span]);
    });
    list.append(table);
    if (spans.length > LISTED) list.append(element("p", "where", `and ${spans.length - LISTED} more, in predictions.csv`));
    this.side.append(bar, list);
  }
  get range_s() { return this.file.duration / this.zoom; }
  secondAt(x) { return Math.min(this.file.duration, Math.max(0, this.begin + (x - this.left) / (this.width - this.left) * this.range_s)); }
  xOf(second) { return this.left + (second - this.begin) / this.range_s * (this.width - this.left); }
  setZoom(zoom) {
    this.zoom = Math.min(Math.max(1, zoom), Math.max(1, this.file.duration / 2));
    this.begin = Math.min(Math.max(0, this.now - this.range_s / 2), this.file.duration - this.range_s);
    this.drawTimeline();
    this.showNow();
  }
  drawTimeline() {
    if (!this.canvas) return;
    const shown = [...new Set(this.file.spans.map(span => span[2]))].filter(label => state.on[label]).sort((a, b) => a - b);
    const { curves } = this.file;
    this.width = Math.max(200, this.lanes.clientWidth);
    this.left = shown.length || curves.length ? Math.min(150, Math.round(this.width * 0.27)) : 0;
    this.shown = shown;
    const height = this.height = shown.length * LANE + curves.length * CURVE + AXIS;
    const context = sizeCanvas(this.canvas, this.width, height);
    const end = this.begin + this.range_s, ink = cssColor("--ink"), faint = cssColor("--ink2"), rule = cssColor("--rule");
    context.font = "12.5px " + getComputedStyle(document.body).fontFamily;
    context.textBaseline = "middle";
    shown.forEach((label, lane) => {
      context.fillStyle = rule;
      context.globalAlpha = 0.6;
      context.fillRect(this.left, lane * LANE + 2, this.width - this.left, LANE - 4);
      context.globalAlpha = 1;
      context.fillStyle = ink;
      context.fillText(fit(context, labels[label].name, this.left - 8), 0, lane * LANE + LANE / 2);
    });
    for (const span of this.file.spans) {
      if (!visible(span) || span[1] < this.begin || span[0] > end) continue;
      const left = Math.max(this.left, this.xOf(span[0])), right = Math.min(this.width, this.xOf(span[1]));
      context.fillStyle = labels[span[2]].color;
      context.globalAlpha = opacity(span[3]);
      context.fillRect(left, shown.indexOf(span[2]) * LANE + 2, Math.max(1.5, right - left), LANE - 4);
    }
    context.globalAlpha = 1;
    curves.forEach((curve, number) => this.drawCurve(context, curve, shown.length * LANE + number * CURVE, ink, faint, rule));
    const every = tickInterval(this.range_s, Math.max(2, (this.width - this.left) / 90));
    context.fillStyle = faint;
    context.font = context.font.replace("12.5px", "11px");
    for (let second = Math.ceil(this.begin / every) * every; second <= end; second += every) {
      const x = this.xOf(second), text = formatTime(second, every < 1 ? 1 : 0);
      context.fillRect(x, height - AXIS, 1, 4);
      context.fillText(text, Math.min(Math.max(0, x - context.measureText(text).width / 2), this.width - context.measureText(text).width), height - 7);
    }
    this.playhead.style.height = `${height - AXIS + 4}px`;
    this.range.textContent = this.zoom > 1 ? `${formatTime(this.begin, 0)} to ${formatTime(end, 0)}` : "";
  }
  drawCurve(context, curve, top, ink, faint, rule) {
    const margin = 5, span = curve.high - curve.low || 1, y = value => top + CURVE - margin - (value - curve.low) / span * (CURVE - 2 * margin);
    context.fillStyle = rule;
    context.globalAlpha = 0.6;
    context.fillRect(this.left, top + 2, this.width - this.left, CURVE - 4);
    context.globalAlpha = 1;
    context.fillStyle = ink;
    context.fillText(fit(context, curve.name, this.left - 8), 0, top + 14);
    context.fillStyle = faint;
    context.fillText(fit(context, `${curve.low.toPrecision(3)} to ${curve.high.toPrecision(3)}`, this.left - 8), 0, top + 31);
    context.strokeStyle = cssColor("--s1");
    context.lineWidth = 1.6;
    context.save();
    context.beginPath();
    context.rect(this.left, top, this.width - this.left, CURVE);
    context.clip();
    context.beginPath();
    let pen = false;
    curve.values.forEach((value, place) => {
      if (value === null) { pen = false; return; }
      const from = this.xOf(curve.starts[place]), to = this.xOf(curve.ends[place]);
      pen ? context.lineTo(from, y(value)) : context.moveTo(from, y(value));
      context.lineTo(to, y(value));
      pen = true;
    });
    context.stroke();
    context.restore();
  }
  hover(event) {
    const second = this.secondAt(event.offsetX), lane = Math.floor(event.offsetY / LANE);
    if (event.offsetX < this.left) {
      lane < this.shown.length ? showTip(event, labels[this.shown[lane]].name) : hideTip();
      return;
    }
    const span = lane < this.shown.length && this.spans.find(each => each[2] === this.shown[lane] && each[0] <= second && second < each[1]);
    if (span) return showTip(event, `${labels[span[2]].name}, ${formatTime(span[0], 2)} to ${formatTime(span[1], 2)}, score ${span[3].toFixed(2)}`);
    const curve = this.file.curves[Math.floor((event.offsetY - this.shown.length * LANE) / CURVE)];
    const value = curve && event.offsetY >= this.shown.length * LANE ? valueAt(curve, second) : null;
    showTip(event, value === null ? formatTime(second, 2) : `${curve.name} ${value.toPrecision(4)} at ${formatTime(second, 2)}`);
  }

  // What depends on the time.
  showNow() {
    if (!this.built) return;
    const now = this.now;
    if (this.canvas) {
      if (this.zoom > 1 && !this.scrubbing && (now < this.begin || now > this.begin + this.range_s)) {
        this.begin = Math.min(Math.max(0, now - 0.1 * this.range_s), this.file.duration - this.range_s);
        this.drawTimeline();
      }
      this.playhead.style.left = `${this.xOf(Math.min(now, this.file.duration))}px`;
      this.playhead.hidden = now < this.begin || now > this.begin + this.range_s;
    }
    const active = this.spans.filter(span => !this.file.duration || (span[0] <= now + 1e-6 && now < span[1] - 1e-6)).sort((a, b) => b[3] - a[3]);
    const values = this.file.curves.map(curve => [curve.name, this.file.duration ? valueAt(curve, now) : curve.values[0]]).filter(([, value]) => value !== null);
    const key = JSON.stringify([active, values, this.file.duration ? formatTime(now) : ""]);
    if (key === this.nowKey && this.nowLine.childNodes.length) return;
    this.nowKey = key;
    this.nowLine.replaceChildren();
    if (this.file.duration) this.nowLine.append(element("time", "", `${formatTime(now)} / ${formatTime(this.file.duration)}`));
    for (const span of active) {
      const chip = element("span"), mark = element("i");
      mark.style.background = labels[span[2]].color;
      chip.append(mark, `${labels[span[2]].name} ${span[3].toFixed(2)}`);
      this.nowLine.append(chip);
    }
    for (const [name, value] of values) this.nowLine.append(element("span", "", `${name} ${value.toPrecision(4)}`));
    for (const [row, span] of this.rows ?? []) row.classList.toggle("here", this.file.duration > 0 && active.includes(span));
    if (this.large) this.showOverlay(now);
  }
  showOverlay(now) {
    const { overlays } = this.file;
    let place = overlays.findIndex(overlay => overlay.time > now + 1e-6);
    place = place < 0 ? overlays.length - 1 : Math.max(0, place - 1);
    [...this.strip.children].forEach((figure, number) => figure.classList.toggle("here", number === place));
    const [image, caption] = this.large.children;
    if (image.getAttribute("src") !== overlays[place].link) image.src = overlays[place].link;
    image.alt = caption.textContent = overlays[place].caption;
  }
  seek(second) {
    this.time = second;
    if (this.video) this.video.currentTime = second;
    this.showNow();
  }
  play() { if (this.video) this.video.paused ? this.video.play().catch(() => {}) : this.video.pause(); }
  jump(direction) {  // to the next or the previous span
    const starts = this.spans.map(span => span[0]).sort((a, b) => a - b), now = this.now;
    const next = direction > 0 ? starts.find(start => start > now + 0.05) : starts.findLast(start => start < now - 0.3);
    if (next !== undefined) this.seek(next);
  }
}

function fit(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let length = text.length;
  while (length && context.measureText(text.slice(0, length) + "…").width > width) length--;
  return text.slice(0, length) + "…";
}
function activate(item) {
  if (state.active === item) return;
  state.active?.box.classList.remove("active");
  state.active = item;
  item.box.classList.add("active");
}

const items = files.map((file, number) => new Item(file, number));
$("items").append(...items.map(item => item.box));
const byBox = new Map(items.map(item => [item.box, item]));
const near = new IntersectionObserver(changes => {
  for (const { target, isIntersecting } of changes) byBox.get(target)[isIntersecting ? "build" : "tear"]();
}, { rootMargin: "900px 0px" });

// All videos over time: a row each; a click goes to the video and the moment.
const overview = { rows: [], canvas: document.querySelector("#overview canvas") };
function drawOverview() {
  const rows = overview.rows = items.filter(item => item.file.duration && item.file.spans.length && !item.box.hidden).slice(0, OVERVIEW);
  $("overview").hidden = rows.length < 2;
  if (rows.length < 2) return;
  const ROW = overview.row = Math.max(3, Math.min(9, Math.floor(OVERVIEW_PIXELS / rows.length)));
  const width = overview.width = $("overview").clientWidth - 14, longest = overview.longest = Math.max(...rows.map(item => item.file.duration));
  const context = sizeCanvas(overview.canvas, width, rows.length * ROW), rule = cssColor("--rule");
  rows.forEach(({ file }, row) => {
    context.globalAlpha = 0.6;
    context.fillStyle = rule;
    context.fillRect(0, row * ROW + 1, file.duration / longest * width, ROW - 2);
    for (const span of file.spans) {
      if (!visible(span)) continue;
      context.globalAlpha = opacity(span[3]);
      context.fillStyle = labels[span[2]].color;
      context.fillRect(span[0] / longest * width, row * ROW + 1, Math.max(1, (span[1] - span[0]) / longest * width), ROW - 2);
    }
  });
}
const placeOf = event => [overview.rows[Math.floor(event.offsetY / overview.row)], event.offsetX / overview.width * overview.longest];
overview.canvas.addEventListener("click", event => {
  const [item, second] = placeOf(event);
  if (!item) return;
  item.build();
  activate(item);
  item.box.scrollIntoView({ block: "start", behavior: "instant" });
  item.seek(Math.min(second, item.file.duration));
});
overview.canvas.addEventListener("pointermove", event => {
  const [item, second] = placeOf(event);
  item && second <= item.file.duration ? showTip(event, `${item.file.name}, ${formatTime(second)}`) : hideTip();
});
overview.canvas.addEventListener("pointerleave", hideTip);

function update() {
  const words = state.search.toLowerCase();
  const filtered = state.threshold > 0 || state.on.includes(false);
  let spans = 0, all = 0, shown = 0;
  for (const item of items) {
    const count = item.spans.length;
    item.box.hidden = !item.file.path.toLowerCase().includes(words) || (filtered && item.file.spans.length > 0 && !count);
    all += item.file.spans.length;
    if (item.box.hidden) continue;
    spans += count;
    shown++;
    item.update();
  }
  $("count").textContent = `${shown} of ${items.length} files` + (all ? `, ${spans} of ${all} spans` : "");
  $("empty").hidden = shown > 0;
  drawOverview();
}
let waiting = 0;
function updateSoon() {
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(update);
}

const chips = labels.map((label, number) => {
  const chip = element("button"), mark = element("i");
  chip.type = "button";
  mark.style.background = label.color;
  chip.append(mark, label.name);
  chip.title = label.name;
  chip.addEventListener("click", () => setLabels(state.on.map((on, other) => other === number ? !on : on)));
  return chip;
});
function setLabels(on) {
  state.on = on;
  chips.forEach((chip, number) => chip.setAttribute("aria-pressed", on[number]));
  updateSoon();
}
$("labels").append(...chips);
$("all").addEventListener("click", () => setLabels(labels.map(() => true)));
$("none").addEventListener("click", () => setLabels(labels.map(() => false)));
$("threshold").addEventListener("input", event => {
  state.threshold = Number(event.target.value);
  $("limit").textContent = state.threshold.toFixed(2);
  updateSoon();
});
$("filter").addEventListener("submit", event => event.preventDefault());
$("search").addEventListener("input", event => { state.search = event.target.value; updateSoon(); });
$("order").addEventListener("change", event => { state.order = event.target.value; updateSoon(); });

document.addEventListener("keydown", event => {
  const item = state.active, { target } = event;
  if (!item || event.ctrlKey || event.metaKey || event.altKey) return;
  if (target.matches("input[type=search], select, textarea")) return;
  if (target.matches("input[type=range]") && event.key.startsWith("Arrow")) return;
  if (target.matches("button") && event.key === " ") return;
  const by = event.shiftKey ? 10 : 1;
  const actions = {
    " ": () => item.play(),
    ArrowLeft: () => item.seek(Math.max(0, item.now - by)),
    ArrowRight: () => item.seek(Math.min(item.file.duration, item.now + by)),
    j: () => item.jump(1),
    k: () => item.jump(-1),
    "+": () => item.setZoom(item.zoom * 2),
    "-": () => item.setZoom(item.zoom / 2),
  };
  if (!item.file.duration || !actions[event.key]) return;
  event.preventDefault();
  event.stopPropagation();
  actions[event.key]();
}, true);
let lastWidth = innerWidth;
addEventListener("resize", () => { if (innerWidth !== lastWidth) { lastWidth = innerWidth; updateSoon(); } });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", updateSoon);

$("filters").open = innerWidth > 860;
setLabels(state.on);
update();
items.forEach(item => near.observe(item.box));
if (items.length) activate(items[0]);
