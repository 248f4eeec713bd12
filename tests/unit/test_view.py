import dataclasses
import html
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import tubelet
from tests.helpers.media import write_image, write_text, write_video
from tubelet.checkpoint.run import save_checkpoint
from tubelet.config import (
    MODELS,
    DataConfig,
    ModelConfig,
    OptimConfig,
    PredictorConfig,
    ShardConfig,
    TrainConfig,
    to_dict,
)
from tubelet.data.loader import StepDataset
from tubelet.data.shards.writer import write_shards
from tubelet.data.sources import list_media
from tubelet.embed.search import Hit
from tubelet.errors import TubeletError
from tubelet.grid import Grid
from tubelet.tasks.common.result import Example, Metric, Result, write_result
from tubelet.view.explain import explain
from tubelet.view.feature_maps import Gallery, _recall_at_k, fine_size
from tubelet.view.input_trace import trace_input
from tubelet.view.page import Line, boundary, chart, columns, heat, significant
from tubelet.view.pca import fit_projection
from tubelet.view.report import write_report
from tubelet.view.results import write_result_page
from tubelet.view.run_curves import run_curves
from tubelet.view.search_page import write_search_page
from tubelet.view.step_facts import STEPS
from tubelet.view.training_samples import training_strips
from tubelet.vjepa import VJEPA, MaskedBatch

TINY = ModelConfig(
    width=64,
    depth=4,
    heads=2,
    levels=(0, 1, 2, 3),
    patch_size=8,
    predictor=PredictorConfig(width=48, depth=2, heads=2),
)
DATA = DataConfig(sources=("clips",), image_size=64, frames=8, fps=4.0)


def make_run(folder: Path, model: ModelConfig = TINY) -> Path:
    """A run folder with one checkpoint of random weights, and nothing else but its config."""
    config = TrainConfig(model=model, data=DATA, optim=OptimConfig(context_weight=0.25), steps=10, batch_size=2)
    torch.manual_seed(1)
    network = VJEPA(config.model)
    save_checkpoint(folder, 10, network.state_dict(), config, keep=1)
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("view") / "run")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("view") / "video.mp4", frames=36)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return write_image(tmp_path_factory.mktemp("view") / "still.png", size=96)


def explained(file, what, folder, **options):
    """The page's HTML with character references resolved, and what was printed."""
    printed = io.StringIO()
    options = {"image_size": None, "frames": None, "fps": None, "seed": 0} | options
    explain(Path(file), str(what), folder / "page.html", console=Console(file=printed, width=80), **options)
    return html.unescape((folder / "page.html").read_text()), printed.getvalue()


@pytest.fixture(scope="module")
def video_page(video, run, tmp_path_factory):
    return explained(video, run, tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def image_page(image, run, tmp_path_factory):
    return explained(image, run, tmp_path_factory.mktemp("page"))


def shape(tensor):
    return "(" + ",\u00a0".join(map(str, tensor.shape)) + ")"


def assert_self_contained(page):
    assert not re.findall(r"""(?:src|href|action)\s*=\s*["'](?!data:|#)""", page)
    assert not re.findall(r"url\((?!data:|#)", page)
    assert "@import" not in page


@pytest.mark.parametrize("kind", ["video_page", "image_page"])
def test_the_page_and_the_console_have_all_eight_steps(kind, request):
    page, printed = request.getfixturevalue(kind)
    for step in STEPS:
        assert f'<span class="n">{step.number}</span> {step.name}</h2>' in page
        assert f"{step.number} {step.name}  {step.code[0].file}" in printed
    assert [step.number for step in STEPS] == list(range(1, 9))
    assert max(map(len, printed.splitlines()[:-1])) <= 80


def test_a_page_needs_no_other_file_and_is_small(video_page, image_page):
    for page, _ in (video_page, image_page):
        assert_self_contained(page)
        assert len(page) < 2_000_000


def test_every_step_names_code_that_exists():
    package = Path(tubelet.__file__).parent
    for step in STEPS:
        for code in step.code:
            lines = (package.parent / code.file).read_text().splitlines()
            first = lines[code.line - 1]
            assert code.source.splitlines()[0].strip() in first
            assert code.name.rpartition(".")[2] in (lines[code.line] if "@" in first else first)


@pytest.mark.parametrize("kind", ["video", "image"])
def test_the_numbers_on_the_page_are_those_of_the_tensors(kind, request, run):
    page, _ = request.getfixturevalue(f"{kind}_page")
    trace = trace_input(request.getfixturevalue(kind), str(run))
    assert trace.grid == (Grid(4, 8, 8) if kind == "video" else Grid(1, 8, 8))
    assert len(trace.masks) == (2 if kind == "video" else 1)
    shown = [trace.pixels, trace.tokens, trace.targets, trace.rotary.cos]
    for mask in trace.masks:
        shown += [mask.tokens, mask.sequence]
        seen, hidden = mask.mask.context.shape[1], mask.mask.target.shape[1]
        assert seen + hidden == trace.grid.tokens
        assert f"sees {seen}, hides {hidden} of {trace.grid.tokens}" in page
    first = trace.masks[0]
    shown += [first.levels[0], first.concatenated, first.fused, first.predicted, first.reconstructed]
    for tensor in shown:
        assert shape(tensor) in page
    assert first.concatenated.shape[-1] == 4 * 64
    assert first.predicted.shape[-1] == trace.targets.shape[-1]


@pytest.fixture
def scene_page(browser, video, run, tmp_path):
    """The page of the video in a browser, and its trace."""
    explained(video, run, tmp_path)
    browser.open(tmp_path / "page.html")
    browser.wait("document.documentElement.dataset.ready === 'yes'")
    return browser, trace_input(video, str(run))


@pytest.mark.browser
def test_the_scene_has_the_numbers_of_the_network(scene_page):
    browser, trace = scene_page
    for number, draw in enumerate(trace.draws):
        for i, mask in enumerate(draw.masks):
            found = browser.evaluate(f"tubelet.losses(tubelet.draws[{number}].masks[{i}])")
            assert found["prediction"] == pytest.approx(float(mask.losses.prediction), rel=1e-4)
            assert found["context"] == pytest.approx(float(mask.losses.context), rel=1e-4)
            assert found["targets"] == mask.mask.target.shape[1]
    token, pairs = 150, 5
    angles = browser.evaluate(
        f"[0, 1, 2].flatMap(axis => [...Array({pairs}).keys()].map(i => tubelet.angle(axis, {token}, i)))"
    )
    assert np.cos(angles) == pytest.approx(trace.rotary.cos[0, token, 0, : 3 * pairs].numpy(), abs=1e-5)
    assert browser.evaluate("document.querySelector('[data-total]').textContent") == significant(
        float(trace.losses.total), 4
    )


@pytest.mark.browser
def test_the_scene_answers_pointer_keyboard_and_sliders(scene_page):
    browser, trace = scene_page
    per_step = trace.grid.h * trace.grid.w
    browser.click("[data-view=patches] canvas", 0.4, 0.9)  # row 7, column 3
    assert browser.evaluate("tubelet.state.token") % per_step == 7 * 8 + 3
    browser.press("ArrowUp")
    browser.press("[")
    assert browser.evaluate("tubelet.state.token") == per_step + 6 * 8 + 3
    browser.hover("[data-view=patches] canvas", 0.05, 0.05)
    assert browser.evaluate("tubelet.state.hover") == per_step
    browser.wait("document.querySelector('[data-view=hands] .where').textContent.includes('token 64')")
    before = browser.evaluate("document.querySelector('[data-view=mask] .detail p').textContent")
    browser.page.locator("[data-view=mask] input[type=range]").fill("1")
    browser.wait(f"document.querySelector('[data-view=mask] .detail p').textContent !== {json.dumps(before)}")
    browser.page.locator("[data-view=sum] input[type=range]").fill("0")
    browser.wait("document.querySelector('.equation').textContent.includes('+ 0 ·')")
    for question in browser.page.locator("fieldset.question").all():
        question.locator("input[value=wrong]").first.check()
        question.locator("input[value=right]").check()
    assert browser.evaluate("document.getElementById('score').textContent").startswith("All 5 answered")


@pytest.mark.browser
def test_the_scene_of_an_image_fits_a_phone(browser, image, run, tmp_path):
    explained(image, run, tmp_path)
    browser.open(tmp_path / "page.html", width=390, height=800, dark=True, touch=True)
    browser.wait("document.documentElement.dataset.ready === 'yes'")
    assert browser.evaluate("document.documentElement.scrollWidth") == 390 and browser.small_controls() == []
    browser.tap("[data-view=patches] canvas", 0.4, 0.9)
    assert browser.evaluate("tubelet.state.token") == 7 * 8 + 3
    browser.tap("[data-view=mask] input[type=range]", 0.99)
    assert browser.evaluate("tubelet.state.draw") == browser.evaluate("tubelet.draws.length - 1") > 0
    assert not browser.evaluate(
        "[...document.querySelectorAll('.slider span')].some(e => e.textContent === 'time step')"
    )


@pytest.mark.browser
def test_a_file_name_is_text_on_every_page(browser, run, tmp_path):
    name = """"><img src=x onerror='window.attacked = 1'>\n\u202e&amp;"""
    folder = tmp_path / name
    folder.mkdir()
    image, clip = write_image(folder / f"{name}.png", size=64), write_video(folder / f"{name}.mp4", frames=8, size=64)
    explained(image, run, tmp_path)
    hits = [Hit(str(path), 0.0, 0.5, 0.9) for path in (image, clip, folder / f"{name} is not there.mp4")]
    write_search_page(hits, str(image), tmp_path / "search.html", None, None, 4.0)
    report(run, tmp_path, data=folder)
    example = Example(name=name, score=None, images={name: np.zeros((8, 8, 3), np.uint8)}, note=name)
    result = Result(
        task=name,
        benchmark=name,
        data=name,
        model_id=name,
        protocol=name,
        metrics={},
        counts={name: 1},
        examples=[example],
    )
    write_result_page(result, tmp_path / "result.html")
    for page in ("page", "search", "report", "result"):
        browser.open(tmp_path / f"{page}.html")
        text = browser.evaluate("document.documentElement.textContent")
        assert "<img src=x onerror='window.attacked = 1'>" in text and "\\u202e&amp;" in text, page
        assert browser.evaluate("document.querySelectorAll('[onerror], [src=x]').length") == 0
        assert "\u202e" not in (tmp_path / f"{page}.html").read_text()


def test_the_losses_on_the_page_are_what_training_would_compute(video, video_page, run):
    trace = trace_input(video, str(run))
    with torch.no_grad():
        (targets,) = trace.model.targets([trace.pixels])
        masks = trace.model([MaskedBatch(trace.pixels, mask.mask, targets) for mask in trace.masks], 0.25)
    expected = [torch.stack(parts).mean() for parts in zip(*masks, strict=True)]
    assert trace.losses is not None
    torch.testing.assert_close(torch.stack(trace.losses), torch.stack(expected))
    page, printed = video_page
    for value in expected:
        assert significant(float(value), 4) in page
        assert significant(float(value), 4) in printed


def test_random_weights_are_reported_to_be_random_and_leave_the_global_generator_unchanged(
    image, tmp_path, monkeypatch
):
    monkeypatch.setitem(MODELS, "vit-ti", lambda: TINY)
    state = torch.random.get_rng_state()
    page, printed = explained(image, "vit-ti", tmp_path, image_size=64)
    assert "random weights" in page
    assert "random weights" in printed
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_distilled_network_has_no_loss_and_the_page_gives_the_reason(image, tmp_path):
    distilled = dataclasses.replace(
        TINY, output_levels=1, predictor=dataclasses.replace(TINY.predictor, output_width=160)
    )
    page, printed = explained(image, make_run(tmp_path / "run", distilled), tmp_path)
    assert trace_input(image, str(tmp_path / "run")).losses is None
    assert "the predictions are 160 wide and the targets of the teacher in this file 64" in page
    assert "larger teacher" in printed


def test_a_video_shorter_than_its_clip_is_reported_to_be_stretched(run, tmp_path):
    short = write_video(tmp_path / "short.mp4", frames=12)
    assert "shorter than the clip" in explained(short, run, tmp_path)[0]


def test_what_cannot_be_explained_is_one_sentence(run, image, tmp_path):
    cases = [
        (tmp_path / "no.mp4", run, {}, "no such file"),
        (tmp_path, run, {}, "is a folder, expected one video or image"),
        (write_text(tmp_path / "text.mp4"), run, {}, "text.mp4"),
        (write_text(tmp_path / "notes.txt"), run, {}, "neither a video"),
        (image, "vit-x", {}, "no such model"),
        (image, run, {"image_size": 60}, "multiple of the patch size 8"),
    ]
    for file, what, options, reason in cases:
        with pytest.raises(TubeletError, match=reason) as caught:
            explained(file, what, tmp_path, **options)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "page.html").exists()


def test_a_page_that_cannot_be_written_is_one_sentence(run, image, tmp_path):
    write_text(tmp_path / "file")
    with pytest.raises(TubeletError, match="cannot be written"):
        explained(image, run, tmp_path / "file")


def test_components_do_not_depend_on_the_tokens_order_and_are_the_same_every_time():
    tokens = torch.randn(200, 16, generator=torch.Generator().manual_seed(0)) * torch.arange(16, 0, -1)
    first, again = fit_projection(tokens), fit_projection(tokens.flip(0))
    assert torch.equal(first.colors(tokens), fit_projection(tokens).colors(tokens))
    assert (first.colors(tokens).int() - again.colors(tokens).int()).abs().max() <= 1
    assert (first.axes.gather(0, first.axes.abs().argmax(0, keepdim=True)) > 0).all()


def test_components_tell_groups_apart_and_one_odd_token_does_not_gray_the_rest():
    tokens = torch.zeros(101, 8)
    tokens[50:100, 2] = 1.0
    tokens += 0.01 * torch.randn(101, 8, generator=torch.Generator().manual_seed(0))
    tokens[100, 2] = 3.0
    red = fit_projection(tokens).colors(tokens)[:, 0].int()
    assert red[:50].max() < 20
    assert red[50:100].min() > 235


def test_heat_maps_are_transparent_where_nothing_is_known_and_outlines_follow_a_region():
    assert heat(np.array([0.0, np.nan]), 0, 1, "magma")[:, 3].tolist() == [255, 0]
    region = np.zeros((2, 3), dtype=bool)
    region[0, 0] = True
    assert boundary(region) == "M1 0v1M0 1h1"
    assert columns(4) == [0, 1, 2, 3]
    assert columns(32)[0] == 0
    assert columns(32)[-1] == 31
    assert len(columns(32)) == 8


def test_charts_take_their_colors_from_the_page():
    svg = chart([Line("a", [1, 2], [0.1, 0.2]), Line("b", [1, 2], [0.2, 0.1])], y="loss")
    assert "var(--s1)" in svg
    assert "var(--s2)" in svg
    assert "#0102" not in svg
    assert_self_contained(svg)


def test_hits_are_the_share_of_the_most_similar_tokens_that_lie_on_the_object():
    on = np.zeros((2, 4, 4), dtype=bool)
    on[:, :2, :2] = True
    assert _recall_at_k(on.astype(float), on) == 1.0
    assert _recall_at_k(1 - on.astype(float), on) == 0.0


def report(run, folder, data=None):
    write_report(run, data, folder / "report.html")
    return html.unescape((folder / "report.html").read_text())


LEVELS = ("", "teacher_level_1_", "predictor_level_1_", "predictor_level_2_")


def write_metrics(run, steps=10):
    rows = [
        {"step": i, "loss": 1 / i, "prediction_loss": 0.8 / i, "context_loss": 0.4 / i, "lr": 1e-4, "ema": 0.99}
        | {"context_weight": 0.5, "clips_per_s": 4.0, "data_wait_fraction": 0.1}
        | ({f"{who}{name}": 20.0 for who in LEVELS for name in ("effective_rank", "channel_std")} if i % 5 == 1 else {})
        for i in range(1, steps + 1)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 11, "lo')


def test_a_report_shows_what_benchmarks_reported_of_the_run(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_dict(TrainConfig(model=TINY, data=DATA))))
    folder = tmp_path / "evaluation" / "depth-nyu"
    metrics = {"RMSE": Metric(value=1.25, unit="m", higher_is_better=False)}
    baselines = {"random weights": {"RMSE": Metric(value=2.5, unit="m", higher_is_better=False)}}
    result = Result(
        task="depth",
        benchmark="NYUv2",
        data="nyu",
        model_id="run-1f2e",
        protocol="One.",
        metrics=metrics,
        counts={},
        baselines=baselines,
    )
    write_result(result, folder / "result.json")
    page = report(tmp_path, tmp_path)
    assert f"<code>tubelet evaluate {tmp_path} --data FOLDER</code>" in page  # to be run from where the report was
    assert '<a href="evaluation/depth-nyu/page.html">depth on NYUv2</a>' in page and "run-1f2e" in page
    assert "1.25 m <small>this run</small>" in page and "2.50 m <small>random weights</small>" in page


def test_a_report_shows_the_suite_in_a_table_with_its_baselines(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(to_dict(TrainConfig(model=TINY, data=DATA))))
    columns = {name: {"depth, RMSE": Metric(value=x, higher_is_better=False)} for name, x in (("own", 0.3), ("r", 0.4))}
    result = Result(
        task="suite",
        benchmark="sample set",
        data="set",
        model_id="run-1f2e",
        protocol="One.",
        metrics=columns["own"],
        baselines={"random weights": columns["r"], "raw patches": {}},
        counts={"val clips": 2},
        details={"step": 10},
    )
    write_result(result, tmp_path / "evaluation" / "suite-set" / "result.json")
    page = report(tmp_path, tmp_path)
    assert re.findall(r'class="best">([\d.]+)<', page) == ["0.300"]
    assert "×0.750" in page and "after 10 steps" in page and "raw patches" in page and "2 val clips" in page


def test_a_report_names_what_a_young_run_does_not_have(tmp_path):
    config = TrainConfig(model=TINY, data=DATA)
    (tmp_path / "config.json").write_text(json.dumps(to_dict(config)))
    page = report(tmp_path, tmp_path)
    assert "has not been evaluated" in page
    assert "has no checkpoint yet" in page
    assert "has no metrics yet" in page
    assert "nothing trained yet" in page
    assert_self_contained(page)


def test_a_report_whose_sources_are_gone_describes_how_to_get_its_images(run, tmp_path):
    write_metrics(run)
    page = report(run, tmp_path)
    assert "pass a folder of videos with --data" in page
    assert "has no metrics yet" not in page
    assert "10 of 10, 2 samples each" in page
    assert len(re.findall(r'data-plot="\w+"', page)) == 10
    assert "The samples cannot be read here" in page


@pytest.mark.slow
def test_a_report_shows_all_levels_and_lists_alerts(run, tmp_path):
    page = report(run, tmp_path)
    assert page.count('"level 2"') == 4
    assert "None: no sign of collapse" in page
    alerts = [{"step": 3, "kind": "collapse", "message": "the teacher's features are collapsing"}] * 60
    (run / "alerts.jsonl").write_text("".join(json.dumps(alert) + "\n" for alert in alerts))
    page = report(run, tmp_path)
    (run / "alerts.jsonl").unlink()
    assert page.count("<td>the teacher's features are collapsing</td>") == 50
    assert "and 10 more, in <code>alerts.jsonl</code>" in page


@pytest.mark.browser
def test_curves_of_a_report_are_enlarged_together(browser, run, tmp_path):
    write_metrics(run, steps=200)
    (run / "alerts.jsonl").write_text(json.dumps({"step": 120, "kind": "collapse", "message": "the rank fell"}) + "\n")
    report(run, tmp_path)
    (run / "alerts.jsonl").unlink()
    browser.open(tmp_path / "report.html")
    ranges = "tubelet.plots.map(plot => [plot.scales.x.min, plot.scales.x.max])"
    browser.wait(f"{ranges}.every(([low, high]) => low === 1 && high === 200)")
    browser.drag(".plot .u-over", (0.25, 0.5), (0.5, 0.5))
    browser.wait(f"{ranges}.every(([low, high]) => Math.abs(low - 51) < 3 && Math.abs(high - 100) < 3)")
    browser.click("[data-step='120']")
    browser.wait(f"{ranges}.every(([low, high]) => low === 112 && high === 128)")
    browser.evaluate("document.getElementById('whole-run').click()")  # the page still scrolls to the curves
    browser.wait(f"{ranges}.every(([low, high]) => low === 1 && high === 200)")
    browser.open(tmp_path / "report.html", 390, 844, touch=True)
    assert browser.small_controls() == [] and browser.evaluate("document.documentElement.scrollWidth") == 390
    browser.swipe(".plot .u-over", [(0.25, 0.5), (0.3, 0.5), (0.5, 0.5)])
    browser.wait(f"{ranges}.every(([low, high]) => Math.abs(low - 51) < 3 && Math.abs(high - 100) < 3)")
    browser.tap("#whole-run")
    browser.wait(f"{ranges}.every(([low, high]) => low === 1 && high === 200)")


def test_a_curve_has_gaps_where_it_is_not_finite_and_keeps_the_sum_of_what_it_averages():
    rows = [{"step": step, "lr": 1.0 if step % 2 else 3.0, "grad_norm": 1.0} for step in range(1, 4001)]
    rows[10]["grad_norm"] = 4001.0
    for row in rows[2000:2100]:
        row["lr"] = None
    plots = run_curves(rows)
    assert plots["lr"]["x"] == list(range(3, 4001, 4))
    y = plots["lr"]["series"][0]["y"]
    assert y[:500] == [2.0] * 500
    assert y[500:525] == [None] * 25
    assert max(plots["grad_norm"]["series"][0]["y"]) == 1001.0
    assert "loss" not in plots


@pytest.mark.parametrize(
    ("model", "side", "size"),
    [
        (TINY, 40, 64),  # never coarser than in training
        (TINY, 100, 96),  # never finer than the source
        (TINY, 4000, 192),
        (dataclasses.replace(TINY, width=1024, heads=16, depth=24), 4000, 104),
    ],
)
def test_maps_are_as_fine_as_source_and_time_allow(model, side, size):
    assert fine_size(TrainConfig(model=model, data=DATA), side) == size


def test_a_report_shows_the_samples_and_masks_of_the_last_step(tmp_path):
    (tmp_path / "clips").mkdir()
    for number in range(2):
        write_video(tmp_path / "clips" / f"{number}.mp4", frames=36)
    data = dataclasses.replace(DATA, sources=(str(tmp_path / "clips"),))
    config = TrainConfig(model=TINY, data=data, steps=10, batch_size=2)
    gallery = Gallery()
    found = training_strips(config, 4, gallery)
    batch = StepDataset(config, list_media(data.sources))[4].batches[0]
    assert found["training_step"] == 5
    assert [len(strip.rows) for strip in found["training_strips"]] == [len(batch.masks)] * 2
    shares = [f"{mask.target.shape[1] / 256:.0%} hidden" for mask in batch.masks]
    assert [row.note for row in found["training_strips"][0].rows] == shares
    assert len(gallery.frames) == 2 * 4


def test_a_reports_table_marks_the_best_and_compares_with_random_weights(tmp_path):
    run = make_run(tmp_path / "run")
    tasks = [
        ("segmentation", "mIoU", True, {"trained": 0.5, "random": 0.25, "raw patches": 0.2}),
        ("depth", "RMSE", False, {"trained": 0.3, "random": 0.4, "raw patches": 0.5}),
    ]
    evaluation = {"checkpoint": "c", "step": 10, "data": "d", "seed": 0, "clips": {"train": 3, "val": 2}} | {
        "features": ["trained", "random", "raw patches"],
        "tasks": [
            {"name": n, "metric": m, "higher_is_better": h, "values": v, "details": {"penalty": 1.0}}
            for n, m, h, v in tasks
        ],
    }
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    (run / "bad_files.jsonl").write_text(json.dumps({"path": "broken.mp4", "reason": "ends early"}) + "\n")
    page = report(run, tmp_path)
    assert re.findall(r'class="best">([\d.]+)<', page) == ["0.500", "0.300"]
    assert "×2.00" in page
    assert "×0.750" in page
    assert "1 file could not be read" in page
    assert "broken.mp4" in page


def test_a_report_shows_features_and_an_object_of_the_sample_set(run, sample_set, tmp_path):
    page = report(run, tmp_path, sample_set)
    assert page.count("trained teacher</div>") >= 2
    assert "random encoder" in page
    assert "No sample set" not in page
    assert ("Cosine similarity to the framed token" in page) != ("None of the searched validation clips" in page)
    assert_self_contained(page)
    assert len(page) < 2_000_000


def test_a_report_shows_features_of_any_videos_and_names_those_that_cannot_be_read(run, video, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    shutil.copy(video, videos / "good.mp4")
    (videos / "bad.mp4").write_text("no video")
    page = report(run, tmp_path, videos)
    assert page.count("trained teacher</div>") == 1
    assert re.search(r"good\.mp4, 0\.\d to 2\.\d s", page)
    assert "Could not be read: " in page and "bad.mp4" in page
    assert "Objects are tracked on a sample set" in page
    assert_self_contained(page)


def test_a_report_shows_features_of_videos_in_shards(video, tmp_path):
    shards = tmp_path / "shards"
    write_shards([str(video)], shards, ShardConfig(size=32, segment_s=1.0))
    run = make_run(tmp_path / "run")
    config = TrainConfig(model=TINY, data=dataclasses.replace(DATA, sources=(str(shards),)))
    (run / "config.json").write_text(json.dumps(to_dict(config)))
    page = report(run, tmp_path)
    assert page.count("trained teacher</div>") > 1 and "can be read here" not in page


def test_what_cannot_be_reported_is_one_sentence(run, tmp_path):
    with pytest.raises(TubeletError, match="not a run directory"):
        report(tmp_path, tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(TubeletError, match="empty"):
        report(run, tmp_path, empty)
    other = make_run(tmp_path / "damaged")
    (other / "evaluation.json").write_text("{")
    with pytest.raises(TubeletError, match=r"evaluation\.json.*JSON"):
        report(other, tmp_path)
