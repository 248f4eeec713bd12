"""Masks that go through the model in one packed pass: the same losses and gradients, by the memory there is."""

import dataclasses

import numpy as np
import pytest
import torch

from tubelet.config import DataConfig, ModelConfig, PredictorConfig, TrainConfig
from tubelet.data.batch import Batch, StepData
from tubelet.data.masks import sample_mask
from tubelet.grid import Grid, Modality
from tubelet.model.layers import Attention, Block
from tubelet.model.packing import pack, unpack
from tubelet.model.rope import RotaryTable, rotary_table
from tubelet.train import packing
from tubelet.train.compilation import prepare_model
from tubelet.train.distributed import DistContext
from tubelet.train.optim import build_optimizer
from tubelet.train.packing import packed_bytes, should_pack
from tubelet.train.step import group_batches, train_step
from tubelet.vjepa import VJEPA

CPU = torch.device("cpu")
SIZES = ModelConfig(
    width=24, depth=2, heads=2, levels=(0, 1), patch_size=8, predictor=PredictorConfig(width=24, depth=1, heads=2)
)
CONFIG = TrainConfig(
    model=SIZES, data=DataConfig(image_size=32, frames=4), batch_size=8, precision="fp32", compile=False
)
COUNTS = {Modality.VIDEO: 4, Modality.IMAGE: 4}


@pytest.fixture(scope="module")
def data():
    """Two micro-batches of videos under two masks, then two of images under one."""
    rng, batches = np.random.default_rng(0), []
    for modality, frames in ((Modality.VIDEO, 4), (Modality.IMAGE, 1)):
        for _ in range(2):
            pixels = torch.from_numpy(rng.integers(0, 256, (2, 3, frames, 32, 32), dtype=np.uint8))
            grid = SIZES.grid(frames, 32, 32)
            masks = [sample_mask(spec, grid, 2, rng) for spec in CONFIG.masks.specs_for(modality)]
            batches.append(Batch(modality, pixels, masks, 0.25))
    return StepData(batches, [])


def take_step(data, packed, **changes):
    """Metrics and gradients of a step, and the number of the model's passes."""
    config, passes, gradients = dataclasses.replace(CONFIG, **changes), [], {}
    torch.manual_seed(0)
    model = VJEPA(SIZES)
    model.pack_masks = packed
    prepare_model(model, config, CPU, compiled=False)
    optimizer = build_optimizer(model, config.optim)
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    optimizer.register_step_pre_hook(
        lambda *_: gradients.update({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    )
    metrics = train_step(model, optimizer, data, config, 200_000, DistContext(CPU))
    return metrics, gradients, len(passes)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_packed_step_has_the_losses_and_gradients_of_one_mask_after_the_other(data, recompute):
    metrics, gradients, passes = take_step(data, packed=False)
    packed_metrics, packed_gradients, packed_passes = take_step(data, packed=True, activation_checkpointing=recompute)
    assert (passes, packed_passes) == (2 * 2 + 2 * 1, 2)
    for name in ("loss", "prediction_loss", "context_loss", "grad_norm"):
        torch.testing.assert_close(packed_metrics[name], metrics[name], rtol=1e-6, atol=0)
    assert packed_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=1e-4, atol=1e-7, msg=name)


def test_a_packed_pass_takes_a_micro_batch_of_each_modality(data):
    videos, images = data.batches[:2], data.batches[2:]
    assert list(group_batches(data.batches, True)) == [[videos[0], images[0]], [videos[1], images[1]]]
    assert list(group_batches(data.batches[:3], True)) == [[videos[0], images[0]], [videos[1]]]
    assert list(group_batches(data.batches, False)) == [[batch] for batch in images + videos]


def test_unpacking_gives_back_what_was_packed_without_a_copy():
    batches = [torch.randn(2, 5, 4), torch.randn(3, 7, 4)]
    packed = pack(batches)
    assert packed.shape == (1, 2 * 5 + 3 * 7, 4)
    parts = unpack(packed, ((2, 5), (3, 7)))
    for part, batch in zip(parts, batches, strict=True):
        assert torch.equal(part, batch)
        assert part.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()
    assert pack(batches[:1]).data_ptr() == batches[0].data_ptr()


def segments_of(lengths):
    """Tokens and table of a packed sequence of batches (B, K)."""
    grid = Grid(4, 8, 8)
    ids = [torch.stack([torch.randperm(grid.tokens)[:K] for _ in range(B)]) for B, K in lengths]
    tables = [rotary_table(own, grid, 12, 16) for own in ids]
    return torch.randn(1, sum(B * K for B, K in lengths), 24), RotaryTable.packed(tables, lengths)


def test_attention_reads_and_writes_tokens_before_heads_so_that_its_output_is_not_copied():
    attention, layouts = Attention(24, 2), []

    def kernel(q, k, v):
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        layouts.extend(x.stride(1) < x.stride(2) for x in (q, k, v))
        layouts.append(out.transpose(1, 2).is_contiguous())
        return out

    attention.kernel = kernel
    x, table = segments_of(((2, 40), (3, 50)))
    attention(x, table)
    assert len(layouts) == 2 * 4 and all(layouts)


@pytest.mark.slow
def test_one_graph_of_a_block_serves_packed_sequences_of_any_lengths():
    torch._dynamo.reset()
    block = Block(24, 2, 4.0)
    compiled = torch.compile(block, backend="eager", dynamic=True, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for lengths in (((2, 40), (2, 51)), ((3, 44), (4, 60))):
            x, table = segments_of(lengths)
            torch.testing.assert_close(compiled(x, table), block(x, table), rtol=1e-5, atol=1e-5)
            compiled(x, table).sum().backward()


def test_masks_are_packed_on_cuda_where_memory_suffices_or_as_the_config_has_it():
    model, state = VJEPA(SIZES), 2**20
    needed = packed_bytes(CONFIG, model, COUNTS, 1)

    def packs(memory, processes=1, **changes):
        return should_pack(dataclasses.replace(CONFIG, **changes), model, COUNTS, memory, processes, state)

    assert packs(int((needed + state) / 0.69)) and not packs(int((needed + state) / 0.71))
    assert packs(int((needed / 2 + state) / 0.69), processes=2)
    assert packs(int((needed / 2 + state) / 0.69), grad_accum_steps=2)
    assert packs(int((needed / 2 + state) / 0.69), activation_checkpointing=True)
    assert not packs(2**50, pack_masks=False)


def test_masks_are_packed_on_a_cpu_where_a_step_is_small(monkeypatch):
    model = VJEPA(SIZES)
    needed = packed_bytes(CONFIG, model, COUNTS, 1)

    def packs(largest, **changes):
        monkeypatch.setattr(packing, "_CPU_BYTES", largest)
        return should_pack(dataclasses.replace(CONFIG, **changes), model, COUNTS, None, 1, 2**40)

    assert packs(needed) and not packs(0.99 * needed)
    assert packs(0, pack_masks=True) and not packs(needed, pack_masks=False)
