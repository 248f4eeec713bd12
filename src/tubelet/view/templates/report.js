// The curves of a run: they share their steps, so that a part of one that is enlarged is enlarged in all.
const { curves, alerts } = readJson("plots");
const plots = [];
const COLORS = ["--s1", "--s2", "--s3", "--s4"];

function makePlot(host) {
  const { unit, x, series } = curves[host.dataset.plot];
  let number = -1;
  const lines = series.map((line, i) => {
    if (i === 0 || !series[i - 1].faint) number++;
    const color = () => cssColor(COLORS[number % COLORS.length]);
    const own = color();
    return {
      label: line.label, stroke: line.faint ? own + "48" : own, width: line.faint ? 1 : 2, points: { show: x.length < 60 },
      value: (_, value) => value === null || value === undefined ? "–" : value.toLocaleString("en-US", { maximumSignificantDigits: 4 }),
      class: line.faint ? "faint" : undefined,
    };
  });
  const axis = { stroke: cssColor("--ink2"), grid: { stroke: cssColor("--rule"), width: 1 }, ticks: { stroke: cssColor("--rule") } };
  const drawAlerts = plot => {
    const { ctx, bbox } = plot;
    ctx.save();
    ctx.strokeStyle = cssColor("--target"); ctx.lineWidth = devicePixelRatio; ctx.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
    for (const { step } of alerts) {
      const at = plot.valToPos(step, "x", true);
      if (at < bbox.left || at > bbox.left + bbox.width) continue;
      ctx.beginPath(); ctx.moveTo(at, bbox.top); ctx.lineTo(at, bbox.top + bbox.height); ctx.stroke();
    }
    ctx.restore();
  };
  const size = () => ({ width: Math.floor(host.clientWidth), height: host.closest(".pair") ? 180 : 230 });
  const plot = new uPlot({
    ...size(), series: [{ label: "step", value: (_, value) => value?.toLocaleString("en-US") ?? "–" }, ...lines],
    scales: { x: { time: false } },
    axes: [axis, { ...axis, label: unit, labelSize: 18, size: 62, values: (_, ticks) => ticks.map(tick => tick.toLocaleString("en-US", { maximumSignificantDigits: 4 })) }],
    cursor: { sync: { key: "steps", setSeries: false }, drag: { x: true, y: false, setScale: false } },
    hooks: { draw: [drawAlerts], setSelect: [showSelection] },
  }, [x, ...series.map(line => line.y)], host);
  host.setAttribute("role", "img");
  host.setAttribute("aria-label", `${unit} by step`);
  new ResizeObserver(() => { if (plot.width !== size().width) plot.setSize(size()); }).observe(host);
  listenToTouch(plot);
  plots.push(plot);
}

// uPlot selects only with the mouse: a finger that moves sideways does the same.
function listenToTouch(plot) {
  const { over } = plot, x = event => Math.max(0, Math.min(over.clientWidth, event.clientX - over.getBoundingClientRect().left));
  let start = null;
  const select = (event, done) => {
    if (start === null) return;
    const end = x(event), left = Math.min(start, end), width = Math.abs(end - start);
    if (done) start = null;
    plot.setSelect({ left, width: width > 8 ? width : 0, top: 0, height: over.clientHeight }, done);
  };
  over.style.touchAction = "pan-y pinch-zoom";
  over.addEventListener("pointerdown", event => { if (event.pointerType === "touch" && event.isPrimary) start = x(event); });
  over.addEventListener("pointermove", event => { if (event.pointerType === "touch" && event.isPrimary) select(event, false); });
  over.addEventListener("pointerup", event => { if (event.pointerType === "touch" && event.isPrimary) select(event, true); });
  over.addEventListener("pointercancel", event => { if (event.pointerType === "touch") { start = null; plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false); } });
}

function showSelection(plot) {
  const { left, width } = plot.select;
  if (width) showRange(plot.posToVal(left, "x"), plot.posToVal(left + width, "x"));
  if (width) plot.setSelect({ left: 0, width: 0, top: 0, height: 0 }, false);
}
function showRange(min, max) {
  for (const plot of plots) plot.setScale("x", { min, max });
  $("whole-run").hidden = plots.every(plot => min <= plot.data[0][0] && max >= plot.data[0].at(-1));
}
function showWholeRun() {
  const steps = plots.flatMap(plot => [plot.data[0][0], plot.data[0].at(-1)]);
  showRange(Math.min(...steps), Math.max(...steps));
}

document.querySelectorAll(".plot").forEach(makePlot);
if (plots.length) {
  showWholeRun();
  $("whole-run").addEventListener("click", showWholeRun);
  plots.forEach(plot => plot.over.addEventListener("dblclick", showWholeRun));
}
document.querySelectorAll("[data-step]").forEach(button => button.addEventListener("click", () => {
  const step = Number(button.dataset.step), last = Math.max(...plots.map(plot => plot.data[0].at(-1))), around = Math.max(last / 25, 5);
  showRange(Math.max(0, step - around), step + around);
  $("loss").scrollIntoView();
}));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  plots.splice(0).forEach(plot => plot.destroy());
  document.querySelectorAll(".plot").forEach(makePlot);
  showWholeRun();
});
window.tubelet = { plots, showRange };
