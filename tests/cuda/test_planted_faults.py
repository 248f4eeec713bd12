"""Each kind of fault that the checks on fake CUDA tensors look for, planted in the real modules, is found."""

import functools
from contextlib import suppress

import pytest
import torch
from torch import nn

from tests.helpers.fake_cuda import CUDA, OperatorLog
from tests.helpers.fake_cuda_process import in_fake_cuda
from tests.helpers.fake_cuda_steps import FakeRun, step_config

pytestmark = pytest.mark.slow

# name -> what it does to a run, and what the log calls it
FAULTS = {}


def fault(problem):
    def add(plant):
        FAULTS[plant.__name__] = (plant, problem)
        return plant

    return add


def before(patch, owner, name, call):
    """Call a function with the arguments of another one, before that."""
    original = getattr(owner, name)

    def run(*args, **kwargs):
        call(*args, **kwargs)
        return original(*args, **kwargs)

    patch.setattr(owner, name, run)


@fault("host waits, a value is read")
def the_host_decides_whether_a_step_is_skipped(patch, run):
    before(patch, type(run.model), "update_teacher", lambda model, momentum, skipped: bool(skipped))


@fault("host waits, a value is read")
def the_optimizer_checks_gradients_on_the_host(patch, run):
    def clip(optimizer, *_):
        nn.utils.clip_grad_norm_(run.model.student.parameters(), 1.0, error_if_nonfinite=True)

    run.optimizer.register_step_pre_hook(clip)


@fault("host waits, a value is read")
def a_list_of_the_losses(patch, run):
    from tubelet.train import step

    before(patch, step, "local_norms", lambda tensors, *_: tensors[0].flatten()[:2].tolist())


@fault("host waits, a copy to the CPU")
def a_loss_on_the_cpu(patch, run):
    before(patch, type(run.model), "update_teacher", lambda model, momentum, skipped: skipped.cpu())


@fault("host waits, the size of a boolean index is read")
def only_errors_above_zero(patch, run):
    from tubelet import objective

    original = objective.token_errors

    def errors(*args):
        found = original(*args)
        found[found > 0].mean()
        return found

    patch.setattr(objective, "token_errors", errors)


@fault("host waits: synchronize()")
def a_step_that_is_timed(patch, run):
    before(patch, type(run.model), "update_teacher", lambda *_: torch.cuda.synchronize())


@fault("tensors on several devices")
def an_index_on_the_cpu(patch, run):
    from tubelet import objective

    original = objective.gather_tokens
    patch.setattr(objective, "gather_tokens", lambda x, ids: original(x, ids)[torch.arange(len(x))])


@fault("tensors on several devices")
def a_range_without_device(patch, run):
    from tubelet import objective

    original = objective.target_distance

    def distance(*args):
        found = original(*args)
        return found + torch.arange(found.shape[1])

    patch.setattr(objective, "target_distance", distance)


@fault("blocking copy to the device")
def masks_that_block(patch, run):
    from tubelet.grid import Mask

    patch.setattr(Mask, "to", lambda mask, device: Mask(mask.context.to(device), mask.target.to(device)))


@fault("blocking copy to the device")
def a_tensor_of_a_number_of_the_host(patch, run):
    before(patch, type(run.model), "update_teacher", lambda model, momentum, _: torch.tensor(momentum, device=CUDA))


@fault("memory that is not pinned")
def pixels_that_are_not_pinned(patch, run):
    from tests.helpers.fake_cuda import _pinned

    _pinned.clear()


@fault("float64 on the device")
def a_loss_in_float64(patch, run):
    from tubelet import objective

    original = objective.token_errors
    patch.setattr(objective, "token_errors", lambda predicted, *args: original(predicted, *args).double())


@fault("matrix product in fp32")
def a_fusion_outside_of_autocast(patch, run):
    original = run.model.predictor.fusion.forward

    def fuse(x):
        with torch.autocast("cuda", enabled=False):
            return original(x.float())

    run.model.predictor.fusion.forward = fuse


@fault("operator on lists off the fast path")
def one_number_for_each_tensor_of_a_list(patch, run):
    def update(model, momentum, skipped):
        teacher, student = (list(part.parameters()) for part in (model.teacher, model.student))
        with torch.no_grad():
            torch._foreach_lerp_(teacher, student, [skipped] * len(teacher))

    patch.setattr(type(run.model), "update_teacher", update)


@fault("operator on lists off the fast path")
def gradients_in_another_layout(patch, run):
    def add(optimizer, *_):
        gradients = [block.mlp.fc1.weight.grad for block in run.model.student.blocks]
        torch._foreach_add_(gradients, [torch.zeros(x.shape[::-1], device=CUDA).mT for x in gradients])

    run.optimizer.register_step_pre_hook(add)


@functools.cache
def problems_without_faults():
    return FakeRun(step_config(), videos=0, images=2).log_step().problems


@in_fake_cuda
@pytest.mark.parametrize("name", FAULTS)
def test_is_found(name):
    plant, problem = FAULTS[name]
    run = FakeRun(step_config(), videos=0, images=2)
    with pytest.MonkeyPatch.context() as patch, OperatorLog(autocast=True) as log:
        plant(patch, run)
        with suppress(RuntimeError):  # as some faults would on a device
            run.step()
    found = log.problems.keys() - problems_without_faults().keys()
    assert any(problem in each for each in found), log.problems
