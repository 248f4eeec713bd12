"""Features of a time come from frames up to it only, where that is asked for."""

import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.helpers.heads import tiny_encoder, tiny_head
from tests.helpers.media import indexed_image
from tubelet.checkpoint.native_clip import NativeClip
from tubelet.config import EmbedConfig, FitConfig, ModelConfig, PredictConfig
from tubelet.data.part_table import parts
from tubelet.embed.collection import embed_collection
from tubelet.embed.search import search
from tubelet.embed.table import read_part
from tubelet.errors import TubeletError
from tubelet.fitting.label_task import get_label_task
from tubelet.fitting.run import head_input
from tubelet.fitting.training import candidates
from tubelet.heads.head_file import HeadInput, make_network
from tubelet.heads.window_grid import iter_windows, row_windows
from tubelet.prediction.pipeline import predict_collection
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.dense_features import DenseFeatures

CONFIG = ModelConfig(width=24, depth=2, heads=2, levels=(0, 1), patch_size=16)
FRAMES, FPS, CHANGED = 24, 8, 13  # frames of a video, and the first that differs: of time step 6 of 12


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    backbone = Backbone(CONFIG).eval().requires_grad_(False)
    backbone.native_clip = NativeClip(32)
    return backbone


def write_lossless(path, frames):
    """A video of frames (H, W, 3) whose pixels do not depend on each other."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=FPS)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "bgr0"
        stream.codec_context.thread_count = 1
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A video, one whose later frames differ, and one that ends where they begin."""
    folder = tmp_path_factory.mktemp("videos")
    frames = [indexed_image(i, 32) for i in range(FRAMES)]
    write_lossless(folder / "a.mkv", frames)
    write_lossless(folder / "later.mkv", [*frames[:CHANGED], *(255 - frame for frame in frames[CHANGED:])])
    write_lossless(folder / "begin.mkv", frames[: CHANGED - 1])
    return folder


def test_causal_features_do_not_change_with_later_frames(model, videos):
    read = {name: DenseFeatures.merge(model.stream(videos / name, frames=8, fps=FPS, causal=True))
            for name in ("a.mkv", "later.mkv", "begin.mkv")}  # fmt: skip
    before = CHANGED // 2  # time steps whose two frames are before the change
    whole = read["a.mkv"]
    assert whole.grid == (12, 2, 2)
    assert whole.times[0].tolist() == [(2 * step + 1) / FPS for step in range(12)]  # of the last frame
    for level, other, begin in zip(*(each.levels for each in read.values()), strict=True):
        level, other, begin = (each.unflatten(1, (-1, 4)) for each in (level, other, begin))
        assert torch.equal(level[:, :before], other[:, :before]) and torch.equal(level[:, :before], begin)
        assert (level[:, before:] != other[:, before:]).flatten(2).any(2).all()
    plain, changed = (
        DenseFeatures.merge(model.stream(videos / name, frames=8, fps=FPS)) for name in ("a.mkv", "later.mkv")
    )
    assert (plain.map - changed.map)[:, before - 1].abs().max() > 1e-3  # the default sees both ways


def test_a_causal_window_ends_with_its_time_step_and_begins_with_the_first_frame_repeated(model, videos):
    steps = list(model.stream(videos / "a.mkv", frames=8, fps=FPS, causal=True))
    frames = np.stack([indexed_image(max(0, i), 32) for i in range(-6, FRAMES)])
    for step in (0, 2, 3, 11):
        expected = model.encode(frames[2 * step : 2 * step + 8])
        assert steps[step].grid == (1, 2, 2)
        assert torch.allclose(steps[step].map[:, 0], expected.map[:, -1], atol=1e-5)
    part = list(model.stream(videos / "a.mkv", frames=8, fps=FPS, causal=True, start=1.0, end=2.0))
    assert [each.times.item() for each in part] == [1.125, 1.375, 1.625, 1.875]
    with pytest.raises(TubeletError, match="causal windows advance by one time step; leave it out"):
        next(model.stream(videos / "a.mkv", frames=8, overlap=4, causal=True))


def test_causal_rows_of_a_table_do_not_change_with_later_frames(model, videos, tmp_path):
    config = EmbedConfig(image_size=32, frames=8, fps=FPS, dense=True, causal=True, workers=0, batch_size=5)
    embed_collection(model, [str(videos)], tmp_path / "table", config)
    (part,) = parts(tmp_path / "table")
    rows = {name: [] for name in ("a.mkv", "later.mkv", "begin.mkv")}
    for row in read_part(part, None).to_pylist():
        rows[Path(row["path"]).name].append(row)
    assert [len(each) for each in rows.values()] == [12, 12, 6]
    streamed = list(model.stream(videos / "a.mkv", frames=8, fps=FPS, causal=True))
    for step, (row, other, expected) in enumerate(zip(rows["a.mkv"], rows["later.mkv"], streamed, strict=True)):
        assert row["times"] == expected.times[0].tolist() == [row["end_s"]] and row["start_s"] == 2 * step / FPS
        assert (row["tokens"] == other["tokens"]) == (row["pooled"] == other["pooled"]) == (step < CHANGED // 2)
        np.testing.assert_allclose(row["tokens"], expected.tokens.flatten(), atol=2e-3)
    assert [row["tokens"] for row in rows["begin.mkv"]] == [row["tokens"] for row in rows["a.mkv"][:6]]
    for at_s in (0.3, 2.3):
        copied = shutil.copy(videos / "a.mkv", tmp_path / "query.mkv")
        best = search(tmp_path / "table", copied, 2, model, at_s=at_s)
        assert any(hit.path.endswith("a.mkv") and hit.start_s <= at_s <= hit.end_s + 1 / FPS for hit in best)
    with pytest.raises(TubeletError, match="causal: True -> False"):
        embed_collection(model, [str(videos)], tmp_path / "table", replace(config, causal=False))
    sparse = replace(config, stride_s=0.8, dense=False)  # three time steps
    embed_collection(model, [str(videos / "a.mkv")], tmp_path / "sparse", sparse)
    (part,) = parts(tmp_path / "sparse")
    assert [row["start_s"] for row in read_part(part, None).to_pylist()] == [0.0, 0.75, 1.5, 2.25]


@pytest.mark.parametrize("network", ["temporal", "correlation"])
def test_causal_networks_over_time_do_not_see_later_steps(network):
    torch.manual_seed(0)
    tokens, later = torch.randn(2, 2, 20, 16, 8)
    later[:, :11] = tokens[:, :11]
    for causal in (True, False):
        head = make_network(network, 8, 3, {"hidden": 8, "causal": causal}).eval()
        scores, others = head(tokens), head(later)
        assert torch.equal(scores[:, :11], others[:, :11]) == causal
        assert (scores[:, 11] != others[:, 11]).any()
        seen = head(tokens[:, 10 - min(10, head.context) : 11])[:, -1]
        assert torch.allclose(seen, scores[:, 10], atol=1e-6) == causal


def test_causal_windows_end_with_the_steps_that_they_own():
    head_input = HeadInput(image_size=32, frames=8, fps=4.0, stride_s=1.0, causal=True)
    windows = list(iter_windows(3.3, head_input, 2))  # seven time steps, the last cut short
    assert [(w.start_step, w.first, w.last) for w in windows] == [(-2, 2, 4), (0, 2, 4), (2, 2, 4), (3, 3, 4)]
    assert windows[0].times.tolist() == [0.125] * 5 + [0.375, 0.625, 0.875]
    assert all(window.times[-1] <= (window.start_step + window.last) / 2 for window in windows)
    assert [row.tolist()[-1] for row in row_windows(1.0, 1.5, 9.0, head_input)] == [1.375]  # ends with the span
    assert [row.tolist()[0] for row in row_windows(0.0, 0.5, 1.0, head_input)] == [0.125]  # at the requested rate
    assert row_windows(0.0, 4.0, 4.0, head_input)[0].tolist() == pytest.approx(np.arange(0.125, 2, 0.25))


@pytest.mark.parametrize("task", ["timeline", "classification"])
def test_causal_predictions_do_not_change_with_later_frames(videos, tmp_path, task):
    model = tiny_encoder()
    clips = {"image_size": 32, "frames": 4, "fps": float(FPS), "stride_s": 2 / FPS, "causal": True}
    options = {"hidden": 8, "layers": 2, "causal": True} if task == "timeline" else None
    head = tiny_head(model, task, input=clips, options=options)
    config = PredictConfig(causal=True, workers=0, batch_size=4)
    made = predict_collection(model, {"head": head}, [str(videos)], tmp_path / "out", config)
    (found,) = made.heads
    scores = {}
    for file in found.files():
        rows = list(file.rows)
        ends = np.concatenate([each.end_s for each in rows])
        assert ends.tolist() == pytest.approx([(step + 1) / 4 for step in range(len(ends))])
        scores[Path(file.file.path).name] = np.concatenate([each.scores for each in rows])
    before = CHANGED // 2
    assert np.array_equal(scores["a.mkv"][:before], scores["later.mkv"][:before])
    assert (scores["a.mkv"][before] != scores["later.mkv"][before]).any()
    np.testing.assert_allclose(scores["begin.mkv"], scores["a.mkv"][:before], atol=1e-5)
    with pytest.raises(TubeletError, match=r"was fitted with causal True, found False; pass --causal \(causal=True\)"):
        predict_collection(model, {"head": head}, [str(videos)], tmp_path / "other", replace(config, causal=False))
    plain = tiny_head(model, task, input=clips | {"causal": False})
    with pytest.raises(TubeletError, match="was fitted with causal False, found True; fit it with --causal"):
        predict_collection(model, {"head": plain}, [str(videos)], tmp_path / "other", config)


def test_a_fit_remembers_that_it_was_causal(model):
    config = FitConfig(causal=True, frames=8, fps=float(FPS), image_size=32)
    timeline, clips = (get_label_task(name) for name in ("timeline", "classification"))
    assert head_input(timeline, model, config, False).stride_s == 2 / FPS
    assert head_input(clips, model, config, False).causal
    assert all(each.options["causal"] for each in candidates("timeline", timeline.networks, config, 4))
    with pytest.raises(TubeletError, match=r"causal is True, but the labeled files are images"):
        head_input(clips, model, config, True)
    with pytest.raises(TubeletError, match=r"stride_s is 0.5, expected 0.25"):
        head_input(timeline, model, replace(config, stride_s=0.5), False)
