"""Anticipation: which frames are seen, what is predicted, and what counts."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.helpers.media import read_index, write_video
from tubelet.config import ModelConfig, PredictorConfig
from tubelet.datasets import ActionSegment
from tubelet.errors import TubeletError
from tubelet.grid import Grid, Mask, MaskedGrid, Modality
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.anticipation import (
    PreActionClip,
    _actions,
    _labels,
    _metrics,
    encode_and_predict,
    focal_loss,
    require_predictor,
)
from tubelet.tasks.common.classification_scores import Scores
from tubelet.tasks.common.extract import Source

SIZES = ModelConfig(
    width=32, depth=2, heads=2, levels=(0, 1), patch_size=8, predictor=PredictorConfig(width=24, depth=1, heads=2)
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Backbone(SIZES, with_predictor=True).eval().requires_grad_(False)


def test_the_clip_ends_a_second_before_the_action_and_begins_no_earlier_than_the_video(tmp_path: Path):
    path = write_video(tmp_path / "a.mp4", frames=60, fps=12)
    view = PreActionClip(size=64, frames=4, fps=4.0)
    for start_s, expected in ((4.0, [24, 27, 30, 33]), (1.5, [0, 0, 0, 3]), (0.2, [0, 0, 0, 0])):
        pixels = view(Source(files=(path,), part=(start_s,)))
        assert pixels.shape == (1, 1, 3, 4, 64, 64)
        assert [read_index(pixels[0, 0, :, t].permute(1, 2, 0)) for t in range(4)] == expected


def test_the_predictor_predicts_the_first_frames_of_the_action(model):
    for parameter in model.predictor.parameters():  # at their initial size, positions hardly matter yet
        parameter.normal_(std=0.3)
    pixels = torch.randn(2, 3, 4, 16, 16)
    tokens = encode_and_predict(model, pixels, steps=3)["tokens"]
    N, frame = 2 * 2 * 2, 4
    assert tokens.shape == (2, N + frame, 32)
    assert torch.allclose(tokens[:, :N], model.forward_features(pixels), atol=1e-5)
    # Steps 0 and 1 were seen, 2 to 4 lie between, step 5 is asked for.
    ids = torch.arange(N + 4 * frame)
    mask = Mask(ids[None, :N].expand(2, -1), torch.arange(5 * frame, 6 * frame).expand(2, -1))
    masked = MaskedGrid(mask, Grid(9, 2, 2), Modality.VIDEO)
    expected = model.predictor(model(pixels), [masked])[0][0][..., -32:]
    assert torch.allclose(tokens[:, N:], expected, atol=1e-5)
    sooner = encode_and_predict(model, pixels, steps=2)["tokens"]
    assert not torch.allclose(tokens[:, N:], sooner[:, N:], atol=1e-5)


def test_a_model_without_a_predictor_of_its_own_is_refused(model):
    require_predictor(model)
    with pytest.raises(TubeletError, match="requires the predictor"):
        require_predictor(Backbone(SIZES))
    foreign = dataclasses.replace(SIZES, predictor=PredictorConfig(width=24, depth=1, heads=2, output_width=48))
    with pytest.raises(TubeletError, match=r"2 levels of width 32, but this one predicts 48 channels"):
        require_predictor(Backbone(foreign, with_predictor=True))


def test_the_focal_loss_is_cross_entropy_without_its_focus_and_is_worked_out_by_hand():
    logits, labels = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 3, 3, 2])
    plain = F.binary_cross_entropy_with_logits(logits, F.one_hot(labels, 4).float(), reduction="sum")
    assert torch.allclose(focal_loss(logits, labels, alpha=0.5, gamma=0.0), plain / 2)
    # Logits of 0 are probabilities of 1/2: each of the two classes errs by ln 2, weighted by (1/2)^2, and 1/4 and 3/4.
    by_hand = (0.25 + 0.75) * 0.25 * np.log(2)
    assert focal_loss(torch.zeros(1, 2), torch.tensor([1])).item() == pytest.approx(by_hand)


def segment(verb: int, noun: int) -> ActionSegment:
    return ActionSegment(name="", path=Path("a"), start_s=0.0, narration="", verb=verb, noun=noun)


def test_actions_that_are_not_trained_on_count_as_missed_in_the_official_figure_only():
    used = {"train": [segment(0, 0), segment(1, 2)], "val": [segment(1, 2), segment(0, 2)]}
    actions = _actions(used)
    assert actions == {(0, 0): 0, (1, 2): 1, (0, 2): 2}
    truth = _labels(used["val"], actions)
    assert truth.tolist() == [[1, 2, 1], [0, 2, 2]]
    found, missed = torch.tensor([0, 0]), torch.tensor([0, 2])
    nothing = torch.zeros(2, 1)
    heads = [Scores(r, r, nothing.long(), nothing) for r in (found, found, torch.where(truth[:, 2] < 2, found, missed))]
    # The evaluator's mean over the two actions that occur: one always found, one never within five of two.
    heads[2] = dataclasses.replace(heads[2], ranks=torch.tensor([0, 5]))
    figures = {name: metric.value for name, metric in _metrics(heads, truth, truth[:, 2] < 2).items()}
    assert figures["action recall@5"] == 50.0 and figures["verb recall@5"] == 100.0
    assert figures["action recall@5 among known actions"] == 100.0
