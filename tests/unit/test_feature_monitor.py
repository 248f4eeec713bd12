"""What is measured of features, and when the host waits for it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tubelet.config import ModelConfig, PredictorConfig, TrainConfig
from tubelet.data.batch import Batch, StepData
from tubelet.data.clips import normalize
from tubelet.data.masks import sample_mask
from tubelet.grid import Modality
from tubelet.train.collapse import channel_std, effective_rank
from tubelet.train.distributed import DistContext
from tubelet.train.feature_monitor import FeatureMonitor
from tubelet.train.metrics_buffer import MetricsBuffer
from tubelet.train.optim import build_optimizer
from tubelet.train.step import train_step
from tubelet.vjepa import VJEPA

SIZES = ModelConfig(
    width=24, depth=2, heads=2, levels=(0, 1), patch_size=8, predictor=PredictorConfig(width=24, depth=1, heads=2)
)
CONFIG = TrainConfig(model=SIZES, precision="fp32", compile=False)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    batches = []
    for modality, frames in ((Modality.VIDEO, 4), (Modality.IMAGE, 1)):
        pixels = torch.from_numpy(rng.integers(0, 256, (2, 3, frames, 32, 32), dtype=np.uint8))
        masks = [sample_mask(spec, SIZES.grid(frames, 32, 32), 2, rng) for spec in CONFIG.masks.video]
        batches.append(Batch(modality, pixels, masks, 0.5))
    return StepData(batches, [])


def monitored(data, ctx, pack_masks=False):
    torch.manual_seed(0)
    model = VJEPA(SIZES)
    model.pack_masks = pack_masks
    monitor = FeatureMonitor(model, CONFIG, ctx)
    monitor.arm(Modality.VIDEO)
    train_step(model, build_optimizer(model, CONFIG.optim), data, CONFIG, 0, DistContext(torch.device("cpu")))
    return model, monitor


@pytest.mark.parametrize("pack_masks", [False, True])
def test_the_metrics_are_those_of_the_videos_tokens(data, pack_masks):
    model, monitor = monitored(data, DistContext(torch.device("cpu")), pack_masks)
    predicted = monitor.predicted
    found = monitor.compute(data.batches[0])
    with torch.no_grad():
        levels = model.teacher(normalize(data.batches[0].pixels))
    names = ("teacher_level_1_", "", "predictor_level_1_", "predictor_level_2_")
    tokens = [*(level.flatten(0, 1) for level in levels), *predicted.split(SIZES.width, dim=-1)]
    for prefix, each in zip(names, tokens, strict=True):
        centered = each - each.mean(0)
        products = centered.T @ centered
        assert found[prefix + "effective_rank"] == pytest.approx(effective_rank(products), rel=1e-3)
        assert found[prefix + "channel_std"] == pytest.approx(channel_std(products, len(each)), rel=1e-5)
        assert found[prefix + "channel_std"] == pytest.approx(each.std(0).mean().item(), rel=1e-4)
    assert len(found) == 8


def test_only_the_first_process_computes_eigenvalues(data, monkeypatch):
    _, monitor = monitored(data, DistContext(torch.device("cpu"), rank=0))
    monitor.ctx = DistContext(torch.device("cpu"), rank=1)
    monkeypatch.setattr(torch.linalg, "eigvalsh", None)
    assert all(np.isnan(value) for value in monitor.compute(data.batches[0]).values())


@pytest.fixture
def cuda(monkeypatch):
    """Events and pinned memory that need no device; the events that were waited for."""
    waited = []

    class Event:
        def record(self):
            pass

        def synchronize(self):
            waited.append(self)

    real = torch.empty
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", lambda *size, pin_memory=False, **options: real(*size, **options))
    return SimpleNamespace(type="cuda", waited=waited)


def test_on_cuda_a_look_waits_for_nothing_and_its_values_come_from_a_thread(data, cuda, monkeypatch):
    _, monitor = monitored(data, DistContext(torch.device("cpu")))
    predicted = monitor.predicted
    expected = monitor.compute(data.batches[0])
    monitor.predicted = predicted
    moments = monitor.second_moments(data.batches[0])
    monkeypatch.setattr(monitor, "second_moments", lambda batch: moments)
    monitor.ctx = SimpleNamespace(device=cuda, is_rank0=True)
    found = monitor.compute(data.batches[0])
    assert all(callable(value) for value in found.values())
    assert {name: value() for name, value in found.items()} == expected
    assert len(cuda.waited) == 1  # by the thread
    monitor.close()


def test_on_cuda_rows_after_a_look_wait_with_it_for_a_fixed_number_of_steps(cuda):
    emitted = []
    buffer = MetricsBuffer(lambda row: emitted.append(row["step"]), cuda)
    seen = []
    for step in range(1, 9):
        buffer.add({"step": step, "loss": torch.tensor(1.0)}, delay=4 if step == 3 else 1)
        seen.append(len(emitted))
        assert len(cuda.waited) >= step - 1  # the host is one step ahead at most
    assert seen == [0, 1, 2, 2, 2, 2, 6, 7]
    buffer.flush()
    assert emitted == list(range(1, 9))


def test_on_a_cpu_rows_come_at_once_in_their_order():
    emitted = []
    buffer = MetricsBuffer(lambda row: emitted.append(row), torch.device("cpu"))
    buffer.add({"step": 1, "loss": torch.tensor(1.0), "rank": lambda: 2.0}, delay=4)
    assert emitted == [{"step": 1, "loss": 1.0, "rank": 2.0}]
