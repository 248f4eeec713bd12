"""The objective's switches: each changes what it says, and nothing else."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from tests.helpers.media import write_image, write_video
from tubelet.config import BlockMask, ModelConfig, OptimConfig, PredictorConfig, TrainConfig, from_dict, to_dict
from tubelet.data.batch import Batch
from tubelet.data.loader import StepDataset
from tubelet.data.masks import sample_mask
from tubelet.data.sources import list_media
from tubelet.errors import TubeletError
from tubelet.grid import Grid, Mask, Modality
from tubelet.objective import dense_predictive_loss
from tubelet.train.step import backpropagate, schedule_values
from tubelet.vjepa import VJEPA

TINY = ModelConfig(
    width=24, depth=2, heads=2, levels=(0, 1), patch_size=8, predictor=PredictorConfig(width=16, depth=1, heads=2)
)
FP32 = torch.autocast("cpu", enabled=False)


def gradients(model: VJEPA, context_weight: float) -> torch.Tensor:
    """One backward pass on fixed data; the losses."""
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.standard_normal((2, 3, 4, 32, 32), dtype=np.float32))
    masks = [sample_mask(BlockMask(blocks=2, area=0.3), TINY.grid(4, 32, 32), 2, rng)]
    return backpropagate(model, [Batch(Modality.VIDEO, pixels, masks, 1.0)], context_weight, FP32)


def test_the_context_loss_equals_hand_computation_with_and_without_distances():
    # A row of five tokens, the first two hidden: the visible ones are 1, 2 and 3 steps from the nearest hidden one.
    mask = Mask(context=torch.tensor([[2, 3, 4]]), target=torch.tensor([[0, 1]]))
    targets = torch.zeros(1, 5, 2)
    predicted = torch.tensor([[[1.0, 3.0], [0.0, 0.0]]])  # errors 2 and 0
    reconstructed = torch.tensor([[[3.0, 3.0], [-6.0, 6.0], [9.0, 9.0]]])  # errors 3, 6 and 9
    arguments = (predicted, reconstructed, targets, mask, Grid(1, 1, 5), 0.5)
    weighted = dense_predictive_loss(*arguments)
    alike = dense_predictive_loss(*arguments, distance_weighting=False)
    assert weighted.prediction.item() == alike.prediction.item() == 1
    assert weighted.context.item() == pytest.approx((3 + 6 / 2**0.5 + 9 / 3**0.5) / 3)
    assert alike.context.item() == pytest.approx((3 + 6 + 9) / 3)
    assert alike.total.item() == pytest.approx(1 + 0.5 * 6)


def test_masked_tokens_only_leave_the_head_of_visible_tokens_without_gradient():
    torch.manual_seed(0)
    model = VJEPA(TINY)
    total, prediction, context = gradients(model, context_weight=0.0)
    assert total == prediction
    assert context > 0
    assert model.predictor.context_head.weight.grad.count_nonzero() == 0
    assert model.predictor.target_head.weight.grad.count_nonzero() > 0


def test_one_output_level_supervises_the_last_level_only():
    torch.manual_seed(0)
    last = VJEPA(dataclasses.replace(TINY, output_levels=1))
    torch.manual_seed(0)
    deep = VJEPA(TINY)
    for name, weight in last.student.state_dict().items():  # the same student, whatever is asked of it
        assert torch.equal(weight, deep.student.state_dict()[name]), name
    for model in (last, deep):
        gradients(model, context_weight=0.5)
    assert last.predictor.target_head.out_features == TINY.width
    assert deep.predictor.target_head.out_features == 2 * TINY.width
    assert last.student.norms[0].weight.grad is None
    assert last.student.norms[1].weight.grad.count_nonzero() > 0
    assert all(norm.weight.grad.count_nonzero() > 0 for norm in deep.student.norms)
    pixels = torch.randn(1, 3, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(last.targets([pixels])[0], deep.targets([pixels])[0][..., TINY.width :])


def test_without_warm_up_the_context_loss_counts_from_the_first_step():
    at_once = TrainConfig(optim=OptimConfig(context_warmup=(0, 0)), steps=100)
    assert [schedule_values(at_once, step)["context_weight"] for step in (0, 99)] == [0.5, 0.5]
    assert schedule_values(TrainConfig(steps=100), 0)["context_weight"] == 0


def test_images_go_through_their_own_tokenizer_or_repeated_through_the_videos_or_are_left_out(tmp_path):
    write_video(tmp_path / "a.mp4", frames=24)
    write_image(tmp_path / "a.png")
    media = list_media([str(tmp_path)])

    def batches(**data):
        small = dataclasses.replace(TrainConfig().data, image_size=32, frames=4, **data)
        return StepDataset(TrainConfig(model=TINY, data=small, steps=2, batch_size=4), media)[0].batches

    video, image = batches()
    assert (video.modality, image.modality) == (Modality.VIDEO, Modality.IMAGE)
    assert image.pixels.shape == (2, 3, 1, 32, 32)
    _, still = batches(image_frames=4)
    assert still.modality is Modality.VIDEO
    assert torch.equal(still.pixels, image.pixels.expand(-1, -1, 4, -1, -1))
    assert still.masks[0].target.max() >= 16  # beyond the first of two time steps: the mask is of the whole grid
    (alone,) = batches(image_fraction=0.0)
    assert alone.modality is Modality.VIDEO
    assert len(alone.pixels) == 4


def test_a_config_written_before_the_switches_reads_as_the_published_objective():
    values = json.loads(json.dumps(to_dict(TrainConfig())))
    del values["optim"]["distance_weighting"], values["data"]["image_frames"]
    assert from_dict(TrainConfig, values) == TrainConfig()


def test_image_frames_must_be_one_or_more():
    with pytest.raises(TubeletError, match="image_frames is 0"):
        dataclasses.replace(TrainConfig().data, image_frames=0)
