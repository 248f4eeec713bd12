"""A model in shards computes what a whole one does: compiled, in low precision, and with its activations recomputed."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tubelet.config import ModelConfig, PredictorConfig, TrainConfig
from tubelet.data.batch import Batch, StepData
from tubelet.data.masks import sample_mask
from tubelet.errors import TubeletError
from tubelet.grid import Modality
from tubelet.train.compilation import prepare_model
from tubelet.train.distributed import DistContext
from tubelet.train.evaluation import gather_state
from tubelet.train.optim import build_optimizer
from tubelet.train.sharding import choose_parallel, pick_parallel, to_device_or_shard, training_bytes
from tubelet.train.step import train_step
from tubelet.vjepa import VJEPA

CPU = torch.device("cpu")
SIZES = ModelConfig(
    width=24,
    depth=2,
    heads=2,
    levels=(0, 1),
    patch_size=8,
    predictor=PredictorConfig(width=24, depth=1, heads=2),
)
ONE_BLOCK = dataclasses.replace(SIZES, depth=1, levels=(0,))


@pytest.fixture(scope="module")
def group():
    """This process as the only one of a group: what sharding adds is there, but for the neighbors."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield DistContext(CPU)
    dist.destroy_process_group()


def losses(ctx, parallel, sizes=SIZES, frames=(4, 1), **changes):
    """Losses of three steps of clips of some numbers of frames, by default videos and images."""
    config = TrainConfig(model=sizes, **({"precision": "fp32", "compile": False} | changes))
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model, ctx = VJEPA(sizes), DistContext(ctx.device)
    prepare_model(model, config, CPU, compiled=bool(config.compile), sharded=parallel != "ddp")
    to_device_or_shard(model, parallel, config, ctx)
    optimizer = build_optimizer(model, config.optim)
    batches = []
    for count in frames:
        pixels = torch.from_numpy(rng.integers(0, 256, (2, 3, count, 32, 32), dtype=np.uint8))
        grid = sizes.grid(count, 32, 32)
        masks = [sample_mask(spec, grid, 2, rng) for spec in config.masks.video]
        modality = Modality.IMAGE if count == 1 else Modality.VIDEO
        batches.append(Batch(modality, pixels, masks, 1 / len(frames)))
    data = StepData(batches, [])
    return [train_step(model, optimizer, data, config, 200_000 + i, ctx)["loss"].item() for i in range(3)]


@pytest.mark.slow
def test_compiled_and_recomputing_shards_have_the_losses_of_a_whole_model(group, monkeypatch):
    compiled = []
    real = torch.compile

    def compile_quickly(target, **options):
        compiled.append(target)
        return real(target, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compile_quickly)
    videos = {"sizes": ONE_BLOCK, "frames": (4,)}  # images are traced apart
    ours = losses(group, "fsdp", compile=True, activation_checkpointing=True, **videos)
    assert len(compiled) >= 1 + 1 + 1
    assert ours == pytest.approx(losses(group, "ddp", **videos), abs=1e-5)


def test_bf16_shards_have_nearly_the_losses_of_a_whole_bf16_model(group):
    assert losses(group, "fsdp", precision="bf16") == pytest.approx(losses(group, "ddp", precision="bf16"), rel=2e-3)


def test_a_sharded_teacher_is_gathered_whole(group):
    config = TrainConfig(model=SIZES, precision="fp32", compile=False)
    model, ctx = VJEPA(SIZES), DistContext(group.device)
    whole = {name: value.clone() for name, value in model.teacher.state_dict().items()}
    to_device_or_shard(model, "fsdp", config, ctx)
    gathered = gather_state(model.teacher.state_dict(), keep=True)
    assert gathered.keys() == whole.keys()
    assert all(torch.equal(gathered[name], whole[name]) and type(gathered[name]) is torch.Tensor for name in whole)
    assert gather_state(model.teacher.state_dict(), keep=False) == {}


def test_a_model_is_sharded_where_it_does_not_fit():
    large = 50 * 2**30
    assert choose_parallel(10 * 2**30, 80 * 2**30, 16, 8) == "ddp"
    assert choose_parallel(large, 80 * 2**30, 16, 8) == "hsdp"
    assert choose_parallel(large, 80 * 2**30, 8, 8) == "fsdp"
    assert choose_parallel(large, 8 * 2**30, 64, 8) == "fsdp"
    model = VJEPA(SIZES)
    trained = sum(p.numel() for part in (model.student, model.predictor) for p in part.parameters())
    assert training_bytes(model) == 16 * trained + 4 * sum(p.numel() for p in model.teacher.parameters())


def test_what_cannot_be_sharded_is_refused():
    model, config = VJEPA(SIZES), TrainConfig(model=SIZES, parallel="fsdp")
    assert pick_parallel(model, dataclasses.replace(config, parallel="auto"), DistContext(CPU, 0, 4)) == "ddp"
    assert pick_parallel(model, config, DistContext(CPU, 0, 4)) == "fsdp"
    with pytest.raises(TubeletError, match="needs several processes"):
        pick_parallel(model, config, DistContext(CPU))
    with pytest.raises(TubeletError, match="adapters are not sharded"):
        pick_parallel(model, dataclasses.replace(config, init_from="x", lora_rank=2), DistContext(CPU, 0, 4))
    with pytest.raises(TubeletError, match="4 processes of which 4 are here"):
        pick_parallel(model, dataclasses.replace(config, parallel="hsdp"), DistContext(CPU, 0, 4))
