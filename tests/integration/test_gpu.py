"""What a GPU computes: a run that is resumed on it, and features beside those of a CPU."""

import pytest
import torch

import tubelet
from tests.helpers.training import rows, tiny_config, train_quietly

pytestmark = pytest.mark.gpu


def test_a_run_that_is_resumed_on_a_gpu_has_the_losses_of_one_that_was_not_stopped(media, tmp_path):
    config = tiny_config(media, steps=10)
    train_quietly(config, tmp_path)
    losses = [row["loss"] for row in rows(tmp_path)]
    (tmp_path / "checkpoints" / "step-000000010.safetensors").unlink()
    train_quietly(config, tmp_path, resume=True)
    assert [row["loss"] for row in rows(tmp_path)] == pytest.approx(losses, rel=1e-4)


def test_features_on_a_gpu_are_those_on_a_cpu(media, tmp_path):
    train_quietly(tiny_config(media, steps=2), tmp_path)
    clip = torch.randint(0, 256, (1, 3, 4, 32, 32), dtype=torch.uint8)
    found = {
        device: tubelet.load(tmp_path, device=device, dtype=torch.float32).encode(clip).tokens.cpu()
        for device in ("cpu", "cuda")
    }
    assert (found["cuda"] - found["cpu"]).abs().max() < 1e-3
