"""The package beside the executable specification, on the same weights and data."""

import numpy as np
import pytest
import torch

from tests.numerics import reference
from tubelet.checkpoint.state_dict import load_strict
from tubelet.checkpoint.vjepa2_1 import read_released
from tubelet.config import BlockMask, ModelConfig, OptimConfig, PredictorConfig
from tubelet.data.batch import Batch
from tubelet.data.masks import sample_mask
from tubelet.grid import Modality
from tubelet.model.attention import attention
from tubelet.train.optim import build_optimizer
from tubelet.train.step import backpropagate
from tubelet.vjepa import VJEPA

CONFIG = ModelConfig(
    width=48,
    depth=2,
    heads=2,
    levels=(0, 1),
    patch_size=8,
    predictor=PredictorConfig(width=32, depth=1, heads=2, output_width=2 * 48),
)
STEPS = 200


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """The specification, and the package's model with its weights, handed over as a file in the released layout."""
    torch.manual_seed(0)
    system = reference.System(CONFIG)
    path = tmp_path_factory.mktemp("weights") / "tiny.pt"
    reference.save(system, path)
    released = read_released(path, heads=2, predictor_heads=2, levels=(0, 1))
    assert released.config == CONFIG
    model = VJEPA(CONFIG)
    for part in ("student", "predictor", "teacher"):
        load_strict(getattr(model, part), getattr(released, part), part)
    return system, model


def moving_pictures(rng: np.random.Generator) -> torch.Tensor:
    """(2, 3, 4, 32, 32): waves of random direction, speed and color."""
    y, x = np.mgrid[:32, :32] / 32 * 2 * np.pi
    t = np.arange(4)[:, None, None]
    clips = []
    for _ in range(2):
        a, b, speed, *color = rng.uniform(-3, 3, 6)
        clips.append(np.stack([np.sin(a * x + b * y + speed * t + c) for c in color]))
    return torch.from_numpy(np.stack(clips)).float()


@pytest.mark.slow
def test_training_follows_the_specification_for_200_steps(pair):
    system, model = pair
    ours = build_optimizer(model, OptimConfig(lr=5e-4))
    theirs = reference.optimizer(system, lr=5e-4)
    rng = np.random.default_rng(0)
    grid = CONFIG.grid(4, 32, 32)
    specs = (BlockMask(blocks=4, area=0.15), BlockMask(blocks=1, area=0.5))
    losses = []
    for _ in range(STEPS):
        pixels = moving_pictures(rng)
        masks = [sample_mask(spec, grid, 2, rng) for spec in specs]
        batch = Batch(Modality.VIDEO, pixels, masks, 1.0)
        our_loss = backpropagate(model, [batch], 0.5, torch.autocast("cpu", enabled=False))[0]
        their_loss = system(pixels, masks, 0.5)[0]
        their_loss.backward()
        for optimizer, network in ((ours, model), (theirs, system)):
            optimizer.step()
            optimizer.zero_grad()
            network.update_teacher(0.99)
        losses.append((our_loss.item(), their_loss.item()))
    ours_all, theirs_all = np.array(losses).T
    assert theirs_all[-20:].mean() < 0.9 * theirs_all[:20].mean()  # something was learned, so that paths could part
    np.testing.assert_allclose(ours_all[:20], theirs_all[:20], rtol=1e-4)
    np.testing.assert_allclose(ours_all, theirs_all, rtol=1e-2)
    assert ours_all[-50:].mean() == pytest.approx(theirs_all[-50:].mean(), rel=1e-3)


def test_the_product_backward_of_bf16_attention_is_that_of_fp32():
    torch.manual_seed(0)
    exact = [torch.randn(2, 3, 70, 16).requires_grad_() for _ in range(3)]
    rounded = [x.detach().bfloat16().requires_grad_() for x in exact]
    grad = torch.randn(2, 3, 70, 16)
    (attention(*exact) * grad).sum().backward()
    out = attention(*rounded)
    (out * grad.bfloat16()).sum().backward()
    for a, b in zip(exact, rounded, strict=True):
        error = (a.grad - b.grad.float()).norm() / a.grad.norm()
        assert error < 0.02
