"""The clips that a head file names: how frames are cropped, what a short video becomes, and the format of the file."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.heads import tiny_encoder, tiny_head
from tests.helpers.media import indexed_image
from tubelet.checkpoint.frame_preprocessing import FramePreprocessing
from tubelet.config import PredictConfig
from tubelet.data.clips import normalize
from tubelet.errors import CheckpointError, ConfigError
from tubelet.heads.head_export import ClipScores
from tubelet.heads.head_file import HeadInput, load_head
from tubelet.io.arrays import read_safetensors
from tubelet.prediction.pipeline import predict_collection

CLIPS = HeadInput(image_size=32, frames=4, fps=12.0, stride_s=4 / 12)
RELEASE = {"views": 3, "padded": True}


def frames(height, width, count=4):
    return torch.stack([torch.from_numpy(indexed_image(index, 256)) for index in range(count)])[:, :height, :width]


def test_the_zoom_is_that_of_encode_and_views_go_from_end_to_end():
    shown, model = frames(80, 120), tiny_encoder()
    zoomed = HeadInput(image_size=32, frames=4, fps=12.0, stride_s=4 / 12, resize=36).crop_views(shown)
    expected = model.encode(shown, resize=36, crop=32).levels[-1]
    assert zoomed.shape == (1, 3, 4, 32, 32)
    torch.testing.assert_close(model.dense_features(zoomed).levels[-1], expected, rtol=0, atol=1e-6)
    sides = HeadInput(image_size=32, frames=4, fps=12.0, stride_s=4 / 12, views=3).crop_views(shown)
    assert torch.equal(sides[1], CLIPS.crop_views(shown)[0]) and not torch.equal(sides[0], sides[2])
    square = HeadInput(image_size=32, frames=4, fps=12.0, stride_s=4 / 12, views=3).crop_views(frames(80, 80))
    assert torch.equal(square[0], square[2])


@pytest.mark.parametrize(("resize", "views"), [(None, 3), (36, 1)])
def test_an_exported_graph_shows_a_head_the_same_squares(resize, views):
    clips = HeadInput(image_size=32, frames=4, fps=12.0, stride_s=4 / 12, resize=resize, views=views)
    for height, width in ((39, 54), (64, 97), (90, 40)):
        shown = frames(height, width)
        graph = FramePreprocessing(32, resize, views)(shown.unsqueeze(0))
        apart = (graph - normalize(clips.crop_views(shown))).abs()
        assert graph.shape == (views, 3, 4, 32, 32) and apart.max() < 0.02 and apart.mean() < 0.001


def test_predictions_average_the_views_of_a_video_whose_last_frame_is_repeated(tmp_path):
    model = tiny_encoder()
    head = tiny_head(model, "classification", input=RELEASE)
    shown = frames(40, 70, count=3)
    np.save(tmp_path / "short.npy", shown.numpy())
    made = predict_collection(
        model, {"a": head}, [str(tmp_path)], tmp_path / "out", PredictConfig(batch_size=2, workers=0)
    )
    (item,) = made.heads[0].files()
    (rows,) = item.rows
    shown = torch.cat([shown, shown[-1:]])
    scores = head(model.dense_features(head.spec.input.crop_views(shown)))
    torch.testing.assert_close(torch.tensor(rows.scores[0]), scores.mean(0), rtol=1e-4, atol=1e-6)
    assert not torch.allclose(scores[0], scores[2], atol=1e-3)
    torch.testing.assert_close(ClipScores(model, head)(shown)[0], scores.mean(0), rtol=0, atol=1e-2)


@pytest.mark.parametrize(
    ("changes", "number"), [({}, 1), (RELEASE, 2), ({"resize": 36}, 2), ({"causal": True}, 2), ({"cells": 2}, 1)]
)
def test_the_format_is_raised_only_for_what_older_code_would_not_apply(tmp_path, changes, number):
    head = tiny_head(tiny_encoder(), "classification", input=changes)
    head.save(tmp_path / "head.safetensors")
    _, header = read_safetensors(tmp_path / "head.safetensors", "")
    assert header["format"] == f"tubelet-head-{number}"
    written = json.loads(header["head"])["input"]
    assert written.keys() - {"image_size", "frames", "fps", "stride_s", "levels", "cells"} == changes.keys() - {"cells"}
    assert load_head(tmp_path / "head.safetensors").spec == head.spec


def test_files_of_the_first_format_with_a_causal_key_are_read_and_later_formats_refused(tmp_path):
    head = tiny_head(tiny_encoder(), "classification")
    path = tmp_path / "head.safetensors"
    head.save(path)
    _, header = read_safetensors(path, "")
    spec = json.loads(header["head"])
    spec["input"]["causal"] = True
    save_file(load_file(path), path, {"format": "tubelet-head-1", "head": json.dumps(spec)})
    assert load_head(path).spec.input.causal
    save_file(load_file(path), path, {"format": "tubelet-head-3", "head": json.dumps(spec)})
    with pytest.raises(CheckpointError, match="'tubelet-head-3', expected 'tubelet-head-1' or 'tubelet-head-2'"):
        load_head(path)


def test_views_are_for_tasks_on_clips():
    with pytest.raises(ConfigError, match="views is 3 and task is 'timeline', expected 1 for other tasks"):
        tiny_head(tiny_encoder(), "timeline", input={"views": 3})


def test_clips_that_make_no_sense_are_refused():
    for changes, message in (
        ({"resize": 16}, "resize is 16, expected at least image_size, 32"),
        ({"views": 0}, "views is 0 and resize is None, expected 1, or more without resize"),
        ({"views": 3, "resize": 36}, "views is 3 and resize is 36, expected 1, or more"),
    ):
        with pytest.raises(ConfigError, match=message):
            HeadInput(image_size=32, frames=4, fps=12.0, stride_s=4 / 12, **changes)
