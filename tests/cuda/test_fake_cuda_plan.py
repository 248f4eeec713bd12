"""The plan of a step, which is made on fake tensors of a CPU, is that of a step on CUDA."""

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import unset_fake_temporarily

from tests.helpers.fake_cuda_process import in_fake_cuda
from tests.helpers.fake_cuda_steps import SIZES, FakeRun, step_config
from tubelet.config import DataConfig, PlanConfig, PredictorConfig
from tubelet.data.batch import Batch, StepData
from tubelet.data.masks import mean_mask_lengths
from tubelet.grid import Mask
from tubelet.planner.memory_tracker import track_storage
from tubelet.planner.run_plan import plan_run

pytestmark = pytest.mark.slow

MODEL = dataclasses.replace(SIZES, width=384, heads=6, predictor=PredictorConfig(width=192, depth=1, heads=6))


def planned_data(config, counts):
    """A step's data with masks of the planned lengths."""
    batches = []
    for modality, lengths in mean_mask_lengths(config, counts).items():
        count, size = counts[modality], config.data.image_size
        masks = [Mask(*(torch.empty(count, n, dtype=torch.int64) for n in pair)) for pair in lengths]
        pixels = torch.empty(count, 3, config.data.frames_for(modality), size, size, dtype=torch.uint8)
        batches.append(Batch(modality, pixels, masks, count / config.batch_size))
    return StepData(batches, []).pin_memory()


@in_fake_cuda
def test_planned_bytes_and_operations_are_those_of_a_step_on_cuda():
    config = step_config(model=MODEL, data=DataConfig(image_size=64, frames=8, image_fraction=0.0), batch_size=4)
    with unset_fake_temporarily():
        plan = plan_run(config, PlanConfig(device_kind="h100"))
        traces = (plan.step, False), (plan.other, True)
    for planned, recompute in traces:
        run = FakeRun(dataclasses.replace(plan.config, activation_checkpointing=recompute))
        run.data = planned_data(config, plan.counts)
        with track_storage() as watch:
            moments = [value for state in run.optimizer.state.values() for value in state.values()]
            watch.name([*run.model.parameters(), *moments], "there before")
            run.step()
        assert watch.log.live_bytes(watch.log.peak()).total() == pytest.approx(planned.total, rel=0.01), planned.memory
        assert watch.log.flops.total() == pytest.approx(planned.flops, rel=0.01)
