"""The page of features: what it contains, how it behaves in a browser, and what is refused."""

import json
import logging
import re
from types import SimpleNamespace

import fsspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import tubelet
from tests.helpers.media import write_image, write_text, write_video
from tubelet.checkpoint.run import load_vjepa, save_checkpoint
from tubelet.config import DataConfig, MaskConfig, ModelConfig, PredictorConfig, TrainConfig, ViewConfig, to_dict
from tubelet.data.masks import covering_masks
from tubelet.device import pick_device, pick_dtype
from tubelet.errors import ConfigError, DataError, FileError
from tubelet.grid import Grid
from tubelet.io.overwrite_checks import check_output
from tubelet.pretrained.dense_features import DenseFeatures
from tubelet.view import encoder_view
from tubelet.view.feature_page import write_feature_page
from tubelet.view.quantization import quantize_tokens
from tubelet.view.token_maps import FrameSampling, fine_size, surprise
from tubelet.vjepa import VJEPA

MODEL = ModelConfig(
    width=64, depth=2, heads=2, levels=(0, 1), patch_size=8, predictor=PredictorConfig(width=48, depth=1, heads=2)
)
SETTINGS = ViewConfig(image_size=64, frames=4, fps=4.0)
HOSTILE = "b <img src=x onerror=attacked=1> \u202e.mp4"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A page of two videos and an image, with student and teacher, and the video of one of them."""
    folder = tmp_path_factory.mktemp("features")
    config = TrainConfig(
        model=MODEL, data=DataConfig(sources=("clips",), image_size=64, frames=4), steps=1, batch_size=2
    )
    torch.manual_seed(0)
    network = VJEPA(MODEL)
    with torch.no_grad():  # features that differ from patch to patch more than those of random weights
        for encoder in (network.student, network.teacher):
            for block in encoder.blocks:
                for parameter in block.parameters():
                    parameter.mul_(3)
    save_checkpoint(folder / "run", 1, network.state_dict(), config, keep=1)
    (folder / "run" / "config.json").write_text(json.dumps(to_dict(config)))
    media = [write_video(folder / "a.mp4", frames=24, size=96), write_video(folder / HOSTILE, frames=24, size=96)]
    media.append(write_image(folder / "c.png"))
    settings = ViewConfig(**{**to_dict(SETTINGS), "encoder": "both"})
    summary = write_feature_page([str(path) for path in media], [str(folder / "run")], folder / "page.html", settings)
    return SimpleNamespace(folder=folder, media=media, run=folder / "run", page=folder / "page.html", summary=summary)


def page_data(page):
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1]
    return json.loads(text)


def exact_tokens(made, path, level=-1, encoder="teacher"):
    """(T', H', W', D) what the page shows of a video, unquantized and by the public interface."""
    model = tubelet.load(made.run, encoder=encoder)
    features = DenseFeatures.merge(model.stream(path, frames=4, fps=4.0, resize=(64, 64)))
    return features.levels[level][0].float().unflatten(0, features.grid.shape)


def test_a_page_has_all_files_encoders_and_levels_and_no_other_file(made):
    data = page_data(made.page)
    assert [each["name"].split()[0] for each in data["files"]] == ["a.mp4", "b", "c.png"]
    assert [(each["encoder"], len(each["levels"])) for each in data["encoders"]] == [("teacher", 2), ("student", 2)]
    assert data["encoders"][0]["grids"] == [[4, 8, 8], [4, 8, 8], [1, 8, 8]]
    text = made.page.read_text()
    assert "default-src 'none'" in text and not re.search(r'(src|href)="(?!#)', text)
    assert made.summary.size == made.page.stat().st_size < 1e6
    assert "\u202e" not in text


def test_quantization_costs_what_it_says():
    torch.manual_seed(0)
    tokens = torch.randn(3000, 96) @ torch.diag(0.9 ** torch.arange(96.0)) + 0.3
    found = quantize_tokens([tokens[:1000], tokens[1000:]], 32)
    exact = F.normalize(tokens, dim=-1) @ F.normalize(tokens[7], dim=-1)
    errors = (found.units() @ found.units()[7] - exact).abs()
    assert found.values.shape == (3000, 32) and found.values.dtype == np.int8
    assert errors.mean() < 2 * found.mean_error and found.mean_error < 0.02
    assert (errors < found.largest_error).float().mean() > 0.95
    assert quantize_tokens([tokens], 96).mean_error < 0.003  # all directions: what remains are the bytes


def test_the_time_of_all_surprise_is_logged_once(made, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(encoder_view, "_LOGGED_S", 0)
    sources = [str(path) for path in (made.media[0], made.media[2])]
    with caplog.at_level(logging.INFO, "tubelet"):
        write_feature_page(sources, [str(made.run)], tmp_path / "a.html", SETTINGS)
    (line,) = [message for message in caplog.messages if message.startswith("surprise of")]
    assert re.fullmatch(r"surprise of 2 files, \d+ windows, takes about .* \(--no-surprise leaves it out\)", line)


def test_surprise_is_the_mean_error_of_hidden_tokens(made):
    model, _ = load_vjepa(made.run)
    sampling = FrameSampling(64, 64, 4, 4.0)
    found = surprise(model, made.media[0], True, sampling, MaskConfig())
    assert found.shape == (4, 8, 8) and np.isfinite(found).all() and (found > 0).all()
    assert np.array_equal(found, surprise(model, made.media[0], True, sampling, MaskConfig()))
    with torch.no_grad():  # a predictor that predicts nothing has the mean magnitude of the targets as its error
        model.predictor.target_head.weight.zero_()
        model.predictor.target_head.bias.zero_()
    assert surprise(model, made.media[2], False, sampling, MaskConfig()).mean() == pytest.approx(0.8, abs=0.1)


def test_few_masks_hide_every_token():
    grid = Grid(2, 24, 24)
    for specs in (MaskConfig().video, MaskConfig().image):
        masks = covering_masks(specs, grid, np.random.default_rng(0))
        assert len(masks) <= 6
        assert torch.cat([mask.target[0] for mask in masks]).unique().numel() == grid.tokens
        for mask in masks:
            assert sorted(torch.cat([mask.context[0], mask.target[0]]).tolist()) == list(range(grid.tokens))


def test_the_shorter_side_is_near_the_requested_size():
    assert fine_size(720, 1280, 384, 16) == (384, 688)
    assert fine_size(100, 50, 64, 8) == (128, 64)


def test_what_does_not_fit_is_refused_before_anything_is_encoded(made, tmp_path, monkeypatch):
    out, run = tmp_path / "page.html", [str(made.run)]
    video, image = str(made.media[0]), str(made.media[2])
    monkeypatch.setattr(encoder_view, "MAX_TOKENS", 100)
    with pytest.raises(DataError, match="expected at most 100 in a page; reduce --fps"):
        write_feature_page([video], run, out, SETTINGS)
    monkeypatch.setattr(encoder_view, "MAX_TOKENS", 10_000)
    monkeypatch.setattr(encoder_view, "_FEATURE_BYTES", 1000)
    with pytest.raises(ConfigError, match="choose fewer by --levels"):
        write_feature_page([video], run, out, SETTINGS)
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="has 2 output levels"):
        write_feature_page([video], run, out, ViewConfig(levels=(5,)))
    with pytest.raises(ConfigError, match="multiple of the tubelet"):
        write_feature_page([video], run, out, ViewConfig(frames=3))
    with pytest.raises(ConfigError, match="needs one video among the sources, found 0"):
        write_feature_page([image], run, out, SETTINGS, video=tmp_path / "pca.mp4")
    fsspec.filesystem("memory").put(video, "memory:///page/a.mp4")
    with pytest.raises(
        DataError, match=r"memory:///page/a\.mp4: is a URL, and a page is made of files on this machine"
    ):
        write_feature_page(["memory:///page/a.mp4"], run, out, SETTINGS)
    with pytest.raises(FileError, match="not a page"):
        write_feature_page([video], run, write_text(tmp_path / "mine.html"), SETTINGS)
    with pytest.raises(FileError, match="not a video"):
        write_feature_page([video], run, out, SETTINGS, video=write_text(tmp_path / "mine.mp4"))
    assert not out.exists()


def test_a_span_of_a_list_is_shown_as_a_video_of_its_own(made, tmp_path):
    (tmp_path / "list.csv").write_text("path,start_s,end_s\na.mp4,0.5,1.5\n")
    write_video(tmp_path / "a.mp4", frames=24, size=96)
    out, settings = tmp_path / "page.html", ViewConfig(**{**to_dict(SETTINGS), "surprise": True})
    write_feature_page([str(tmp_path / "list.csv")], [str(made.run)], out, settings, video=tmp_path / "pca.mp4")
    (file,), (view,) = page_data(out)["files"], page_data(out)["encoders"]
    assert (file["name"], file["duration"]) == ("a.mp4#t=0.5,1.5", 1)
    assert view["grids"] == [[2, 8, 8]] and view["times"] == [[0.125, 0.625]]
    assert view["surprise"] is not None
    with tubelet.Video(tmp_path / "pca.mp4") as written, tubelet.Video(tmp_path / "a.mp4") as video:
        shown, (source,) = written.frames(), video.clips([np.array([0.5, 1.49])])
        assert written.info.duration_s == pytest.approx(1, abs=1e-3) and len(shown.times) == 12
    colors = [
        [float(clip[:, :, : clip.shape[1]].float().mean()) for clip in clips]
        for clips in ((shown.pixels[0][:, :480], shown.pixels[-1][:, :480]), (source.pixels[0], source.pixels[-1]))
    ]
    np.testing.assert_allclose(*colors, atol=2)


def test_a_video_has_the_original_beside_the_colors_of_the_page(made, tmp_path):
    out = tmp_path / "pca.mp4"
    write_feature_page([str(made.media[0])], [str(made.run)], tmp_path / "page.html", SETTINGS, video=out)
    check_output(out, "video")  # a video of this package may be replaced
    with tubelet.Video(out) as video:
        frames = video.frames().pixels
    assert frames.shape[:3] == (24, 480, 960)
    (view,) = page_data(tmp_path / "page.html")["encoders"]
    assert view["surprise"] is not None
    tokens = exact_tokens(made, made.media[0])
    colors = quantize_tokens([tokens.flatten(0, 2)], 64)
    expected = colors.colors.colors(colors.units()).view(*tokens.shape[:3], 3)[0].float()
    blocks = (
        torch.from_numpy(np.asarray(frames[0, :, 480:]))
        .float()
        .unflatten(0, (8, 60))
        .unflatten(2, (8, 60))
        .mean((1, 3))
    )
    assert (blocks - expected).abs().mean() < 25  # interpolated, and compressed


@pytest.mark.browser
def test_models_are_shown_next_to_each_other_and_asked_together(browser, made, tmp_path):
    models = [str(made.run), str(made.run / "checkpoints" / "step-000000001.safetensors")]
    settings = ViewConfig(image_size=64, frames=4, levels=(-1,), surprise=False)
    write_feature_page([str(made.media[2])], models, tmp_path / "page.html", settings)
    first, second = page_data(tmp_path / "page.html")["encoders"]
    assert first["model"] != second["model"] and len(first["levels"]) == len(second["levels"]) == 1
    browser.open(tmp_path / "page.html")
    browser.wait("layers.length === 2 && cards[0].image?.complete")
    browser.click("#file-0 .screen .stage", x=0.3, y=0.3)
    assert browser.evaluate("layers.map(layer => layer.high)") == pytest.approx([1, 1], abs=1e-4)
    assert (
        browser.evaluate("getComputedStyle(document.querySelector('.screens')).gridTemplateColumns.split(' ').length")
        == 2
    )
    browser.click("[data-mode=surprise]")
    assert "left out by --no-surprise" in browser.evaluate("$('surprise-note').textContent")


@pytest.fixture
def page(browser, made):
    """The page in a browser, with all features computed."""
    browser.open(made.page)
    browser.wait("layers.length > 0 && cards[0].video?.readyState >= 2")
    yield browser
    assert browser.evaluate("window.attacked") is None


SCREEN = "#file-0 .screen:last-child .stage"


@pytest.mark.browser
def test_a_click_shows_the_similarity_that_python_computes(page, made):
    page.evaluate("cards[0].seek(cards[0].file.duration / 2)")
    step = page.evaluate("cards[0].stepOf(state.shown[0])")
    page.click(SCREEN, x=2.5 / 8, y=5.5 / 8)
    assert page.evaluate("state.mode") == "similarity"
    for encoder, level in (("teacher", 1), ("teacher", 0), ("student", 1)):
        page.evaluate(f"state.encoderName = '{encoder}'; arrange(); setLevel({level})")
        unit = F.normalize(exact_tokens(made, made.media[0], level, encoder), dim=-1)
        expected = (unit @ unit[step, 5, 2]).flatten().numpy()
        shown = np.array(page.evaluate("[...layers[state.shown[0]].values]"))[: expected.size]
        assert np.abs(shown - expected).max() < 0.02
        assert (
            np.abs(shown - expected).mean() < 2 * page_data(made.page)["encoders"][0]["levels"][level]["error"] + 1e-3
        )
    assert page.evaluate("performance.mark('a'); update(); performance.measure('b', 'a').duration") < 500


@pytest.mark.browser
def test_a_drag_takes_the_mean_of_its_patches(page, made):
    page.evaluate("setMode('similarity')")
    page.drag(SCREEN, (0.5 / 8, 0.5 / 8), (3.5 / 8, 1.5 / 8))
    unit = F.normalize(exact_tokens(made, made.media[0]), dim=-1)
    query = F.normalize(unit[0, 0:2, 0:4].flatten(0, 1).mean(0), dim=-1)
    shown = np.array(page.evaluate("[...layers[0].values]"))[: 4 * 64]
    assert np.abs(shown - (unit @ query).flatten().numpy()).max() < 0.02


@pytest.mark.browser
def test_a_point_is_followed_and_a_click_on_the_plot_seeks(page):
    page.click(SCREEN, x=0.3, y=0.3)
    assert page.evaluate("layers[0].path.get(0).length") == 4
    page.click("#file-0 .timeline", x=0.75, y=0.5)
    page.wait("!cards[0].video.seeking && Math.abs(cards[0].video.currentTime - 1.5) < 0.1")
    assert page.evaluate("cards[0].screens.at(-1).step") == 3


@pytest.mark.browser
def test_marks_of_a_patch_in_a_corner_are_not_cut_off(page):
    page.click(SCREEN, x=0.01, y=0.99)
    page.evaluate("setMode('similarity')")
    width, height, x, y = page.evaluate("""(() => {
      const { marks } = cards[0].screens.at(-1), { width, height } = marks, x = new Set(), y = new Set();
      const { data } = marks.getContext("2d").getImageData(0, 0, width, height);
      for (let i = 0; i < width * height; i++) {
        if (data[4 * i + 3] === 255) { x.add(i % width); y.add(Math.floor(i / width)); }
      }
      return [width, height, Math.min(...x), Math.max(...y)];
    })()""")  # where the light line of the outline begins and ends
    assert 1 <= x < width / 8 and height * 7 / 8 < y <= height - 2


@pytest.mark.browser
def test_colors_begin_as_in_python_and_spread_over_a_region(page):
    everything = page.evaluate("layers[0].basis.axes")
    computed = page.evaluate("principalComponents(features(0).sample).axes.map(axis => [...axis])")
    assert np.abs(np.array(everything) - np.array(computed)).max() < 1e-3
    page.drag(SCREEN, (0.1, 0.1), (0.1, 0.6), (0.6, 0.1), (0.6, 0.6))
    assert page.evaluate("state.region.points.length") > 4
    assert np.abs(np.array(page.evaluate("layers[0].basis.axes.map(axis => [...axis])")) - everything).max() > 0.01
    page.click("#all-tokens")
    assert page.evaluate("layers[0].basis.axes") == everything
    page.evaluate("$('foreground').value = 50; $('foreground').dispatchEvent(new Event('input'))")
    page.wait("Math.abs(layers[0].kept?.reduce((a, b) => a + b) - features(0).count / 2) < 3")


@pytest.mark.browser
def test_keys_change_mode_opacity_level_and_time(page):
    page.press("3")
    page.press("[")
    page.press("l")
    assert page.evaluate("[state.mode, state.level, state.opacity.toFixed(1)]") == ["clusters", 0, "0.7"]
    page.press("ArrowRight")
    assert page.evaluate("cards[0].screens.at(-1).step") == 1
    page.press(" ")
    page.wait("!cards[0].video.paused && cards[0].time > 0.6")
    page.press(" ")
    page.press("2")
    before = page.evaluate("state.query.box")
    page.press("Alt+ArrowLeft")
    assert page.evaluate("state.query.box")[0] == pytest.approx(before[0] - 1 / 8)


@pytest.mark.browser
def test_clusters_partition_the_tokens_and_take_names(page):
    page.click("[data-mode=clusters]")
    page.evaluate("$('k').value = 4; $('k').dispatchEvent(new Event('input'))")
    page.wait("layers[0].shares.length === 4")
    assert page.evaluate("layers[0].shares.reduce((a, b) => a + b)") == pytest.approx(1)
    assert page.evaluate("new Set(layers[0].groups).size") == 4
    page.page.locator("#names input").first.fill("<b>wall</b>")
    page.page.locator("#names input").first.press("Tab")
    assert page.evaluate("nameOf(0)") == "<b>wall</b>"
    page.click("#names button")
    assert page.evaluate("state.isolated.size") == 1


@pytest.mark.browser
def test_surprise_is_shown_as_it_was_computed(page, made):
    page.click("[data-mode=surprise]")
    model, _ = load_vjepa(made.run)
    model = model.to(pick_device(), pick_dtype("auto", pick_device()))
    expected = surprise(model, made.media[0], True, FrameSampling(64, 64, 4, 4.0), MaskConfig()).ravel()
    shown = page.evaluate("[...Array(256).keys()].map(token => layers[0].error(token))")
    span = page.evaluate("layers[0].range.high - layers[0].range.low")
    assert np.abs(np.array(shown) - expected).max() <= span / 254


@pytest.mark.browser
def test_lines_join_mutual_nearest_neighbors(page, made):
    page.evaluate("state.pins.A = {card: cards[0], second: 0}; state.pins.B = {card: cards[0], second: 1.9}")
    page.click("[data-mode=compare]")
    unit = F.normalize(exact_tokens(made, made.media[0]), dim=-1)
    table = unit[0].flatten(0, 1) @ unit[3].flatten(0, 1).T
    mutual = sum(int(table[:, j].argmax()) == i for i, j in enumerate(table.argmax(1).tolist()))
    assert abs(page.evaluate("comparison.pairs.length") - mutual) <= 0.15 * mutual + 2
    page.hover("#compare canvas", x=0.2, y=0.5)


@pytest.mark.browser
def test_a_png_is_saved(page, tmp_path):
    with page.page.expect_download() as download:
        page.press("e")
    assert download.value.suggested_filename == "a-pca.png"
    download.value.save_as(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1024, False)])
def test_everything_is_within_the_window(browser, made, width, dark):
    browser.open(made.page, width=width, dark=dark)
    browser.wait("layers.length > 0 && performance.getEntriesByName('first-contentful-paint').length > 0")
    assert browser.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") < 2000
    for mode in ("similarity", "clusters", "surprise", "compare", "pca"):
        browser.evaluate(f"setMode('{mode}')")
        assert browser.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.browser
def test_fingers_do_what_the_mouse_does(browser, made):
    browser.open(made.page, 390, 844, touch=True)
    browser.wait("layers.length > 0 && cards[0].video?.readyState >= 2")
    browser.tap(SCREEN, x=2.5 / 8, y=5.5 / 8)
    assert browser.evaluate("[state.mode, layers[0].values[5 * 8 + 2]]") == ["similarity", pytest.approx(1, abs=0.01)]
    browser.swipe("#file-0 .timeline", [(0.1, 0.5), (0.4, 0.5), (0.75, 0.5)])
    browser.wait("!cards[0].video.seeking && Math.abs(cards[0].video.currentTime - 1.5) < 0.1")
    browser.evaluate("cards[0].seek(0)")
    browser.tap("summary")
    browser.tap("#draw")
    browser.swipe(SCREEN, [(0.5 / 8, 0.5 / 8), (2 / 8, 1 / 8), (3.5 / 8, 1.5 / 8)])
    unit = F.normalize(exact_tokens(made, made.media[0]), dim=-1)
    query = F.normalize(unit[0, 0:2, 0:4].flatten(0, 1).mean(0), dim=-1)
    shown = np.array(browser.evaluate("[...layers[0].values]"))[: 4 * 64]
    assert np.abs(shown - (unit @ query).flatten().numpy()).max() < 0.02
    browser.tap("[data-mode=compare]")
    browser.evaluate("comparison.pairs = [{from: [0.3, 0.5], to: [0.5, 0.5], similarity: 0.9}]; drawComparison()")
    browser.tap("#compare canvas", x=0.3, y=0.5 * 0.45)
    assert browser.evaluate("comparison.hovered?.similarity") == 0.9
    assert browser.small_controls() == []
    assert browser.evaluate("document.documentElement.scrollWidth") == 390
    assert browser.evaluate("cards[0].screens[0].marks.width") == 2 * browser.evaluate(
        "cards[0].screens[0].stage.clientWidth"
    )
