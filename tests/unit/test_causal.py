"""Features of a time come from frames up to it alone, where that is asked for."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from tests.helpers.media import indexed_image
from tubelet.checkpoint.native_clip import NativeClip
from tubelet.config import EmbedConfig, ModelConfig
from tubelet.data.part_table import parts
from tubelet.embed.collection import embed_collection
from tubelet.embed.search import search
from tubelet.embed.table import read_part
from tubelet.errors import TubeletError
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
        torch.testing.assert_close(steps[step].map[:, 0], expected.map[:, -1], atol=1e-5, rtol=1e-5)
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
        best = search(tmp_path / "table", videos / "a.mkv", 2, model, at_s=at_s)
        assert any(hit.path.endswith("a.mkv") and hit.start_s <= at_s <= hit.end_s + 1 / FPS for hit in best)
    with pytest.raises(TubeletError, match="causal: True -> False"):
        embed_collection(model, [str(videos)], tmp_path / "table", replace(config, causal=False))
    sparse = replace(config, stride_s=0.8, dense=False)  # three time steps
    embed_collection(model, [str(videos / "a.mkv")], tmp_path / "sparse", sparse)
    (part,) = parts(tmp_path / "sparse")
    assert [row["start_s"] for row in read_part(part, None).to_pylist()] == [0.0, 0.75, 1.5, 2.25]
