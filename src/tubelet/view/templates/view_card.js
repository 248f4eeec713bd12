// One file of the page: its frames under the features of each encoder, and a timeline.

const PLOT = 84;

class Screen {  // encoder: number of an encoder, null for only the frame
  constructor(card, encoder) {
    Object.assign(this, { card, encoder, step: -1 });
    this.box = element("figure", "screen");
    this.stage = element("div", "stage");
    this.stage.tabIndex = 0;
    this.stage.setAttribute("role", "application");
    this.stage.setAttribute("aria-label", `${card.file.name}${encoder === null ? "" : `, ${encoderName(encoder)}`}: Enter picks the patch in the middle`);
    this.frame = element("canvas");
    [this.frame.width, this.frame.height] = [card.file.width, card.file.height];
    this.stage.append(this.frame);
    if (encoder !== null) {
      this.overlay = element("canvas", "overlay");
      const [, rows, columns] = data.encoders[encoder].grids[card.number];
      [this.overlay.width, this.overlay.height] = [columns, rows];
      this.stage.append(this.overlay);
    }
    this.marks = element("canvas");
    this.stage.append(this.marks);
    this.caption = element("figcaption");
    this.box.append(this.stage, this.caption);
    this.listen();
  }
  place(event) {  // fractions of width and height
    const box = this.stage.getBoundingClientRect(), clamp = value => Math.min(0.9999, Math.max(0, value));
    return [clamp((event.clientX - box.left) / box.width), clamp((event.clientY - box.top) / box.height)];
  }
  listen() {
    const { stage, card } = this;
    let points = null;
    stage.addEventListener("pointerdown", event => {
      if (event.button) return;
      activate(card);
      points = [this.place(event)];
      if (event.pointerType === "mouse" || state.drawing) stage.setPointerCapture(event.pointerId);
    });
    stage.addEventListener("pointermove", event => {
      if (points) {
        points.push(this.place(event));
        this.drawMarks(points);
      } else if (event.pointerType === "mouse") showTip(event, this.describe(this.place(event)));
    });
    stage.addEventListener("pointerleave", hideTip);
    stage.addEventListener("pointercancel", () => { points = null; this.drawMarks(); });
    stage.addEventListener("pointerup", () => {
      if (!points) return;
      const drawn = points, [x, y] = drawn[0];
      points = null;
      const size = Math.max(...drawn.map(point => Math.max(Math.abs(point[0] - x), Math.abs(point[1] - y))));
      size > 0.025 ? dragged(card, drawn) : clicked(card, [x, y], this.encoder ?? state.shown[0]);
      this.drawMarks();
    });
    stage.addEventListener("keydown", event => {
      if (event.key === "Enter") clicked(card, [0.5, 0.5], this.encoder ?? state.shown[0]);
    });
  }
  describe([x, y]) {
    const encoder = this.encoder ?? state.shown[0], layer = layers[encoder];
    if (!layer) return "";
    return layer.describe(tokenAt(this.card, encoder, this.card.stepOf(encoder), x, y));
  }
  drawFrame(source) {
    drawMedia(this.frame.getContext("2d"), source, this.frame.width, this.frame.height);
  }
  drawOverlay() {
    if (!this.overlay || !layers[this.encoder]) return;
    const { width, height } = this.overlay, context = this.overlay.getContext("2d");
    const image = context.createImageData(width, height);
    const begin = firstToken(this.encoder, this.card.number, this.step);
    if (isFilled(this.encoder, begin)) layers[this.encoder].paint(image.data, begin, begin + width * height);
    context.putImageData(image, 0, 0);
    this.overlay.style.opacity = state.opacity;
  }
  drawMarks(points = null) {
    const width = this.stage.clientWidth, height = this.stage.clientHeight;
    if (!width) return;
    this.paintMarks(sizeCanvas(this.marks, width, height), width, height, points);
    this.marks.style.width = this.marks.style.height = "";
  }
  paintMarks(context, width, height, points) {
    const outline = draw => {  // dark below light: visible on anything
      for (const [color, line] of [["rgba(0,0,0,.65)", 4.5], ["#fff", 2]]) {
        context.strokeStyle = color;
        context.lineWidth = line;
        context.beginPath();
        draw();
        context.stroke();
      }
    };
    // Marks of patches at the border stay whole: half of the widest line and the radius are kept inside.
    const inside = (value, size, radius) => Math.min(size - radius - 2.25, Math.max(radius + 2.25, value));
    const circle = ([x, y], radius) => context.arc(inside(x * width, width, radius), inside(y * height, height, radius), radius, 0, 7);
    const rectangle = (x0, y0, x1, y1) => {
      const [left, right] = [x0, x1].map(x => inside(x * width, width, 0)), [top, bottom] = [y0, y1].map(y => inside(y * height, height, 0));
      context.rect(left, top, right - left, bottom - top);
    };
    const trace = list => list.forEach(([x, y], i) => context[i ? "lineTo" : "moveTo"](x * width, y * height));
    context.lineJoin = context.lineCap = "round";
    if (points) {
      if (state.mode === "pca") outline(() => trace(points));
      else outline(() => rectangle(...bounds(points)));
      return;
    }
    const { query } = state, encoder = this.encoder ?? state.shown[0];
    if (state.mode === "pca" && state.region?.card === this.card && this.step === this.card.stepAt(encoder, state.region.second)) {
      outline(() => { trace(state.region.points); context.closePath(); });
    }
    if (state.mode !== "similarity" || !query) return;
    const layer = layers[encoder], path = layer?.path?.get(this.card.number), step = this.card.stepOf(encoder);
    const isQuery = query.card === this.card && step === this.card.stepAt(encoder, query.second);
    if (path?.[step]) {
      let begin = step;
      while (begin > 0 && begin > step - 24 && path[begin - 1]) begin--;
      outline(() => trace(path.slice(begin, step + 1)));
    }
    if (isQuery) {
      const [, rows, columns] = data.encoders[encoder].grids[this.card.number];
      const [x0, y0, x1, y1] = cells(query.box, rows, columns);
      outline(() => rectangle(x0 / columns, y0 / rows, x1 / columns, y1 / rows));
    } else if (path?.[step]) {
      outline(() => circle(path[step], 4.5));
      context.fillStyle = "#fff";
      context.fill();
    } else if (layer?.best) {
      outline(() => circle(layer.best(this.card, step), 8));
    }
  }
}

class Card {
  constructor(file, number) {
    Object.assign(this, { file, number, time: 0, video: null, loaded: false });
    this.box = element("article", "card item");
    this.box.id = `file-${number}`;
    const bar = element("div", "bar");
    this.clock = element("time");
    this.playButton = element("button", "", "▶ Play");
    this.playButton.addEventListener("click", () => this.play());
    const save = element("button", "", "PNG");
    save.title = "Save what is shown as an image";
    save.addEventListener("click", () => this.savePng());
    bar.append(element("h2", "", file.name), this.clock);
    if (file.video) bar.append(this.playButton);
    for (const side of ["A", "B"]) {
      const pin = element("button", "pin", side);
      pin.title = `Take this moment as ${side} of the comparison`;
      pin.addEventListener("click", () => { state.pins[side] = { card: this, second: this.time }; setMode("compare"); });
      bar.append(pin);
    }
    bar.append(save);
    this.screensBox = element("div", "screens");
    this.screensBox.style.setProperty("--aspect", file.width / file.height);
    this.box.append(bar, this.screensBox);
    if (file.video) this.addTimeline();
    this.screens = [];
    this.box.addEventListener("pointerdown", () => activate(this));
    this.box.addEventListener("focusin", () => activate(this));
  }
  addTimeline() {
    this.timeline = element("canvas", "timeline");
    this.timeline.setAttribute("role", "img");
    this.timeline.setAttribute("aria-label", `Timeline of ${this.file.name}`);
    this.box.append(this.timeline);
    const seek = event => this.seek(event.offsetX / this.timeline.clientWidth * this.file.duration);
    let scrubbing = false;
    this.timeline.addEventListener("pointerdown", event => { scrubbing = true; this.timeline.setPointerCapture(event.pointerId); this.video?.pause(); seek(event); });
    this.timeline.addEventListener("pointermove", event => { if (scrubbing) seek(event); });
    for (const kind of ["pointerup", "pointercancel"]) this.timeline.addEventListener(kind, () => { scrubbing = false; });
  }
  load() {
    if (this.loaded) return;
    this.loaded = true;
    const url = this.file.source ?? URL.createObjectURL(new Blob([readBinary(`media-${this.number}`)], { type: this.file.video ? "video/mp4" : "image/jpeg" }));
    const fail = () => this.box.append(element("p", "missing", `${this.file.name} cannot be read any more; its features are still here.`));
    if (!this.file.video) {
      this.image = new Image();
      this.image.addEventListener("load", () => this.draw());
      this.image.addEventListener("error", fail, { once: true });
      this.image.src = url;
      return;
    }
    const video = this.video = element("video");
    Object.assign(video, { muted: true, loop: true, playsInline: true, preload: "auto", src: url });
    video.addEventListener("error", fail, { once: true });
    for (const kind of ["loadeddata", "seeked"]) video.addEventListener(kind, () => this.draw());
    const show = () => { this.playButton.textContent = video.paused ? "▶ Play" : "❚❚ Pause"; };
    video.addEventListener("pause", show);
    video.addEventListener("play", () => {
      show();
      const tick = () => { if (!video.paused) { this.time = video.currentTime; this.draw(); requestAnimationFrame(tick); } };
      tick();
    });
  }
  stepAt(encoder, second) {  // the nearest time step
    const times = data.encoders[encoder].times[this.number];
    let best = 0;
    times.forEach((time, step) => { if (Math.abs(time - second) < Math.abs(times[best] - second)) best = step; });
    return best;
  }
  stepOf(encoder) { return this.stepAt(encoder, this.time); }
  seek(second) {
    if (!this.file.video) return;
    this.time = Math.min(this.file.duration - 0.001, Math.max(0, second));
    if (this.video) this.video.currentTime = this.time;
    this.draw();
  }
  play() {
    if (!this.video) return;
    for (const other of cards) if (other !== this) other.video?.pause();
    this.video.paused ? this.video.play().catch(() => {}) : this.video.pause();
  }
  arrange() {  // the screens that the state asks for
    const encoders = state.original ? [null, ...state.shown] : state.shown;
    this.screens = encoders.map(encoder => new Screen(this, encoder));
    this.screensBox.style.setProperty("--columns", encoders.length);
    this.screensBox.replaceChildren(...this.screens.map(screen => screen.box));
    for (const screen of this.screens) {
      screen.caption.textContent = encoders.length === 1 ? "" : screen.encoder === null ? "original" : encoderName(screen.encoder);
    }
  }
  draw(all = false) {
    if (!this.screens.length) return;
    const source = this.file.video ? this.video : this.image;
    const ready = source && (this.file.video ? source.readyState >= 2 : source.complete);
    for (const screen of this.screens) {
      if (ready) screen.drawFrame(source);
      const step = this.stepOf(screen.encoder ?? state.shown[0]);
      if (step !== screen.step || all) {
        screen.step = step;
        screen.drawOverlay();
        screen.drawMarks();
      }
    }
    this.clock.textContent = this.file.video ? `${formatTime(this.time)} / ${formatTime(this.file.duration)}` : "";
    if (this.timeline) this.drawTimeline(all);
  }
  drawTimeline(all) {
    const width = this.timeline.clientWidth, lanes = state.shown.length, height = PLOT * lanes;
    if (!width) return;
    if (all || !this.plot || this.plot.width !== Math.round(width * (window.devicePixelRatio || 1))) {
      this.plot = element("canvas");
      const context = sizeCanvas(this.plot, width, height);
      state.shown.forEach((encoder, lane) => {
        context.save();
        context.translate(0, lane * PLOT);
        layers[encoder]?.plot(context, this, width, PLOT - 4);
        context.restore();
      });
    }
    const context = sizeCanvas(this.timeline, width, height), x = this.time / this.file.duration * width;
    this.timeline.style.width = "";
    context.drawImage(this.plot, 0, 0, width, height);
    context.fillStyle = cssColor("--page");
    context.fillRect(x - 2.5, 0, 5, height);
    context.fillStyle = cssColor("--ink");
    context.fillRect(x - 1, 0, 2, height);
  }
  savePng() {
    const { width, height } = this.file, scale = Math.max(1, Math.min(3, 720 / height)), gap = 8, line = this.screens.length > 1 ? 52 : 30;
    const w = Math.round(width * scale), h = Math.round(height * scale), canvas = element("canvas");
    canvas.width = this.screens.length * (w + gap) - gap;
    canvas.height = h + line;
    const context = canvas.getContext("2d");
    context.fillStyle = "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.fillStyle = "#22262c";
    context.font = "15px system-ui, sans-serif";
    this.screens.forEach((screen, column) => {
      context.save();
      context.translate(column * (w + gap), 0);
      context.fillText(screen.caption.textContent, 4, h + 20, w - 8);
      context.drawImage(screen.frame, 0, 0, w, h);
      if (screen.overlay) {
        context.globalAlpha = state.opacity;
        context.imageSmoothingEnabled = state.smooth && state.mode !== "clusters";
        context.drawImage(screen.overlay, 0, 0, w, h);
        context.globalAlpha = 1;
      }
      screen.paintMarks(context, w, h, null);
      context.restore();
    });
    context.fillText(`${this.file.name} ${this.clock.textContent} · ${MODES[state.mode].name} · ${levelName()}`, 4, canvas.height - 10, canvas.width - 8);
    return new Promise(resolve => canvas.toBlob(blob => { saveFile(blob, `${this.file.name.replace(/\.\w+$/, "")}-${state.mode}.png`); resolve(); }));
  }
}

// The central part of a frame that has the shape of the canvas: tables have the features of the central square.
function drawMedia(context, source, width, height) {
  const w = source.videoWidth || source.naturalWidth, h = source.videoHeight || source.naturalHeight, scale = Math.min(w / width, h / height);
  context.drawImage(source, (w - width * scale) / 2, (h - height * scale) / 2, width * scale, height * scale, 0, 0, width, height);
}
function bounds(points) {
  const x = points.map(point => point[0]), y = points.map(point => point[1]);
  return [Math.min(...x), Math.min(...y), Math.max(...x), Math.max(...y)];
}
function cells([x0, y0, x1, y1], rows, columns) {  // the patches that a box touches
  return [Math.floor(x0 * columns), Math.floor(y0 * rows), Math.min(columns, Math.floor(x1 * columns) + 1), Math.min(rows, Math.floor(y1 * rows) + 1)];
}
