"""The training step on fake CUDA tensors: no GPU is needed, and none is used."""

import dataclasses

import pytest

from tests.helpers.fake_cuda import CUDA, to_fake_cuda
from tests.helpers.fake_cuda_process import in_fake_cuda
from tests.helpers.fake_cuda_steps import (
    FakeRun,
    count_step,
    distilled_config,
    one_of_eight,
    real_tensors,
    step_config,
)
from tubelet.grid import Modality
from tubelet.train.step_cost import step_cost
from tubelet.vjepa import VJEPA

pytestmark = pytest.mark.slow


def assert_clean(log, allowed=()):
    """No problem was found, but for those that contain an allowed text."""
    found = log.unexpected(*allowed)
    assert not found, found
    assert log.kernels.total() > 100


@in_fake_cuda
def test_step_in_bf16():
    assert_clean(FakeRun(step_config()).log_step())


@in_fake_cuda
def test_step_with_packed_masks():
    assert_clean(FakeRun(step_config(pack_masks=True)).log_step())


@in_fake_cuda
def test_step_in_fp32():
    assert_clean(FakeRun(step_config(precision="fp32")).log_step())


@in_fake_cuda
def test_step_with_recomputed_activations():
    run = FakeRun(step_config(activation_checkpointing=True))
    assert run.model.student.recompute_activations
    assert_clean(run.log_step())


@in_fake_cuda
def test_step_with_accumulated_gradients():
    run = FakeRun(step_config(grad_accum_steps=2, batch_size=8), videos=4, images=4)
    assert len(run.data.batches) == 4
    assert_clean(run.log_step())


@in_fake_cuda
def test_metrics_of_a_step_reach_the_host_without_stalling_the_device():
    from tubelet.train.metrics_buffer import MetricsBuffer

    rows = []
    buffer = MetricsBuffer(rows.append, CUDA)
    run = FakeRun(step_config())
    for expected in (0, 1):  # rows come one step late
        assert_clean(run.log_step(lambda metrics: buffer.add({"step": 1} | metrics)))
        assert len(rows) == expected


@in_fake_cuda
def test_step_with_a_look_at_features():
    from tubelet.train.feature_monitor import FeatureMonitor

    run = FakeRun(step_config())
    monitor = FeatureMonitor(run.model, run.config, run.ctx)
    monitor.arm(run.data.batches[0].modality)

    log = run.log_step(lambda metrics: monitor.compute(run.data.batches[0]))
    assert_clean(log, ["aten.bmm.default at tubelet/train/feature_monitor.py"])  # products of channels, in fp32


@in_fake_cuda
@pytest.mark.parametrize("parallel", ["ddp", "fsdp", "hsdp"])
def test_step_of_one_of_eight_processes(parallel):
    with one_of_eight() as ctx:
        log = FakeRun(step_config(batch_size=32), ctx=ctx, parallel=parallel).log_step()
    assert_clean(log)
    assert log.groups()["communication"] > 0


@in_fake_cuda
def test_step_of_a_distillation():
    from tubelet.pretrained.backbone import Backbone

    config, sizes = distilled_config()
    run = FakeRun(config)
    with real_tensors():
        teacher = Backbone(sizes)
    run.model.frozen_teacher = (to_fake_cuda(teacher).requires_grad_(False).eval(),)
    assert_clean(run.log_step())


@in_fake_cuda
def test_step_of_adapters():
    from tubelet.model.lora import add_adapters

    def adapt(model):
        for part in (model.student, model.teacher):
            add_adapters(part, 4)
        model.teacher.requires_grad_(False)

    run = FakeRun(step_config(lora_rank=4, init_from="released"), change=adapt)
    assert 0 < sum(p.requires_grad for p in run.model.student.parameters()) < 20
    assert_clean(run.log_step())


@in_fake_cuda
def test_step_in_fp8():
    pytest.importorskip("torchao")
    log = FakeRun(step_config(precision="fp8")).log_step()
    assert any(name == "_scaled_mm" for _, name in log.kernels)
    assert_clean(log, ["float64"])  # torchao's scales


@in_fake_cuda
def test_kernels_of_an_uncompiled_step():
    from benchmarks.kernels import published_step

    # Every block launches as many kernels as its neighbors, of whatever width: two small steps tell those of a block.
    # docs/performance.md has the counts of the whole steps.
    counts = {}
    for depths in ((4, 1), (5, 1), (4, 2)):
        counts[depths] = count_step(with_depths(published_step("vit-s", 12, 12), *depths), 12, 12).kernels.total()
    block, predictor_block = (counts[depths] - counts[4, 1] for depths in ((5, 1), (4, 2)))
    for name, ceiling in (("vit-s", 3_050), ("vit-l", 5_400)):
        config = published_step(name, 12, 12)
        sizes = config.model
        kernels = counts[4, 1] + (sizes.depth - 4) * block + (sizes.predictor.depth - 1) * predictor_block
        assert kernels <= ceiling
        with real_tensors():
            model = VJEPA(sizes)
            model.pack_masks = True
            cost = step_cost(model, config, {Modality.VIDEO: 12, Modality.IMAGE: 12})
        # By which a run decides whether to compile: fit the constants of train/step_cost.py to the count.
        assert cost.kernels == pytest.approx(kernels, rel=0.2)


def with_depths(config, depth, predictor_depth):
    """A run of a smaller encoder and predictor."""
    predictor = dataclasses.replace(config.model.predictor, depth=predictor_depth)
    model = dataclasses.replace(config.model, depth=depth, levels=(0, 1, 2, depth - 1), predictor=predictor)
    return dataclasses.replace(config, model=model)
