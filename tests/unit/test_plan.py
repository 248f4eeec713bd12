"""A plan's bytes are those of a real step's tensors, and its arithmetic adds up."""

import dataclasses

import psutil
import pytest
import torch
from rich.console import Console

from benchmarks.plan import real_run
from tubelet.config import DataConfig, ModelConfig, PlanConfig, PredictorConfig, TrainConfig
from tubelet.errors import ConfigError, TubeletError
from tubelet.planner.device_kinds import DEVICE_KINDS, planned_device
from tubelet.planner.memory_tracker import Transfer, track_storage
from tubelet.planner.plan_table import print_plan, sentences
from tubelet.planner.run_plan import CPU, USABLE, plan_run
from tubelet.train.distributed import DistContext
from tubelet.train.packing import packed_bytes
from tubelet.train.sharding import training_bytes
from tubelet.train.step import train_step
from tubelet.vjepa import VJEPA

SIZES = ModelConfig(
    width=48, depth=2, heads=2, levels=(0, 1), patch_size=8, predictor=PredictorConfig(width=24, depth=1, heads=2)
)
RUN = TrainConfig(
    pack_masks=False,
    model=SIZES,
    data=DataConfig(image_size=64, frames=4),
    batch_size=4,
    precision="fp32",
    compile=False,
    steps=100,
)
LAPTOP = PlanConfig(device_kind="cpu")


@pytest.fixture(scope="module")
def plan():
    return plan_run(RUN, LAPTOP)


@pytest.fixture(scope="module")
def bf16_plan():
    return plan_run(dataclasses.replace(RUN, precision="bf16"), LAPTOP)


@pytest.fixture(scope="module")
def sharded():
    """A plan of shards over the devices of two machines of two."""
    run = dataclasses.replace(RUN, batch_size=8, parallel="hsdp")
    return plan_run(run, PlanConfig(device_kind="h100", devices=4, devices_per_node=2))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_planned_bytes_and_operations_are_those_of_a_real_steps_tensors(precision, plan, bf16_plan):
    run = dataclasses.replace(RUN, precision=precision)
    plan = {"fp32": plan, "bf16": bf16_plan}[precision]
    for step, recompute in ((plan.step, False), (plan.other, True)):
        run = dataclasses.replace(run, activation_checkpointing=recompute)
        model, optimizer, data = real_run(run, "ddp", ctx := DistContext(CPU))
        train_step(model, optimizer, data, run, 0, ctx)
        with track_storage() as watch:
            watch.name([*model.parameters(), *(batch.pixels for batch in data.batches)], "there before")
            watch.name([value for state in optimizer.state.values() for value in state.values()], "there before")
            train_step(model, optimizer, data, run, 1, ctx)
        assert watch.log.live_bytes(watch.log.peak()).total() == pytest.approx(step.total, rel=0.01), (
            step.moment,
            step.memory,
        )
        assert watch.log.flops.total() == step.flops > 0


@pytest.mark.slow
def test_a_plan_does_not_depend_on_the_state_that_other_code_left_in_this_process(bf16_plan):
    torch.autocast_increment_nesting()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.no_grad():
            assert plan_run(bf16_plan.config, LAPTOP).step.total == bf16_plan.step.total
    finally:
        torch.set_autocast_cache_enabled(True)
        torch.autocast_decrement_nesting()


@pytest.mark.slow
def test_state_is_four_bytes_a_weight_and_eight_a_trained_ones_moments(plan):
    numbers, memory = plan.parameters, plan.step.memory
    trained = numbers["student"] + numbers["predictor"]
    assert memory["parameters"] == 4 * trained
    assert memory["teacher"] == 4 * numbers["teacher"]
    assert memory["optimizer moments"] == pytest.approx(8 * trained, rel=0.01)


@pytest.mark.slow
def test_shards_hold_their_part_of_the_state(plan, sharded):
    whole, part = plan.step.memory, sharded.step.memory
    for kind in ("parameters", "teacher", "optimizer moments"):
        assert part[kind] == pytest.approx(whole[kind] / 2, rel=0.05), kind


@pytest.mark.slow
def test_replicas_reduce_a_shard_each_between_machines(sharded):
    kinds = {(each.kind, each.members) for each in sharded.step.transfers if each.size > 100}
    assert kinds == {("all-gather", 2), ("reduce-scatter", 2), ("all-reduce", 2)}
    network = sharded.device.network * sharded.planned.link_efficiency
    assert sharded.rate(Transfer("all-reduce", 1, 2)) == network
    assert sharded.seconds(Transfer("all-reduce", 1000, 2)) == pytest.approx(1000 / network)
    assert sharded.rate(Transfer("all-gather", 1, 2)) == sharded.device.link * sharded.planned.link_efficiency


@pytest.mark.slow
def test_a_sum_of_gradients_moves_every_gradient_once():
    plan = plan_run(RUN, dataclasses.replace(LAPTOP, devices=2))
    trained = plan.parameters["student"] + plan.parameters["predictor"]
    assert sum(each.size for each in plan.step.transfers) == pytest.approx(4 * trained, rel=0.02)
    assert plan.step_seconds == plan.compute_seconds + plan.transfer_seconds


@pytest.mark.slow
def test_packed_masks_are_one_pass_that_takes_the_memory_by_which_a_run_decides(plan):
    run = dataclasses.replace(RUN, pack_masks=True)
    packed = plan_run(run, LAPTOP)
    assert [each.name for each in packed.step.passes] == ["video mask 1 + video mask 2 + image mask 1"]
    assert packed.step.flops == plan.step.flops and packed.step.total > plan.step.total
    assert "all masks in one pass" in sentences(packed)[0] and "one mask after the other" in sentences(plan)[0]
    with torch.device("meta"):
        model = VJEPA(SIZES)
    estimate = training_bytes(model) + packed_bytes(run, model, packed.counts, 1)
    assert estimate == pytest.approx(packed.step.total, rel=0.2)


def test_recomputing_holds_less_and_multiplies_more(plan):
    assert plan.other.flops > plan.step.flops
    for kept, recomputed in zip(plan.step.passes, plan.other.passes, strict=True):
        assert recomputed.live_bytes < kept.live_bytes


def test_a_plan_reports_whether_it_fits_and_what_to_change(plan):
    assert plan.fits and "fits: " in sentences(plan)[3]
    small = dataclasses.replace(plan, device=dataclasses.replace(plan.device, memory=plan.step.total / USABLE - 1))
    text = " ".join(sentences(small))
    assert not small.fits
    for advice in ("does not fit", "--activation-checkpointing", "--grad-accum-steps"):
        assert advice in text


def test_tables_add_up_to_what_they_print(plan):
    console = Console(width=100)
    with console.capture() as shown:
        print_plan(plan, console)
    text = shown.get()
    assert f"{plan.step.total / 2**30:.3f}" in text
    for each in plan.step.passes:
        assert each.name in text
    clips = plan.config.batch_size / plan.step_seconds
    assert f"{clips:,.4g} clips/s" in text


def test_a_plan_is_of_this_machines_device_unless_another_one_is_named(monkeypatch):
    monkeypatch.setattr("tubelet.planner.device_kinds.pick_device", lambda: CPU)
    own, on_cpu = planned_device(PlanConfig())
    assert on_cpu and own.name == "cpu (this machine, measured)" and 1e8 < own.flops < 1e14
    assert own.memory == psutil.virtual_memory().total
    assert planned_device(PlanConfig(device_kind="h100")) == (DEVICE_KINDS["h100"], False)


def test_an_own_device_without_a_data_sheet_is_an_error_that_lists_the_others(monkeypatch):
    monkeypatch.setattr("tubelet.planner.device_kinds.pick_device", lambda: torch.device("mps"))
    with pytest.raises(ConfigError, match=r"an Apple GPU, of which .* name one of b200, h200"):
        planned_device(PlanConfig())


def test_too_small_a_batch_is_refused():
    with pytest.raises(TubeletError, match="raise --batch-size"):
        plan_run(RUN, PlanConfig(devices=8))
