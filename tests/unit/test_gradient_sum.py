"""Gradients are summed during the last backward pass: what starts when, what is summed, and that nothing is missed."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tubelet.train import gradient_sum
from tubelet.train.gradient_sum import GradientSum

WIDTH = 4
BYTES = WIDTH * WIDTH * 4


class TwoBranches(nn.Module):
    """A trunk of three layers, below it a branch for each of two inputs, and a layer that nothing uses."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Linear(WIDTH, WIDTH, bias=False)
        self.image = nn.Linear(WIDTH, WIDTH, bias=False)
        self.video = nn.Linear(WIDTH, WIDTH, bias=False)
        self.trunk = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3)))

    def forward(self, x, branch):
        return self.trunk(getattr(self, branch)(x)).square().sum()


@pytest.fixture
def log(monkeypatch):
    """Sums of two equal processes that end when they are waited for; a record of what happened in which order."""
    events = []

    class Work:
        def __init__(self, tensor):
            self.tensor = tensor

        def wait(self):
            events.append("wait")
            self.tensor *= 2

    def all_reduce(tensor, async_op):
        assert async_op
        events.append(f"start {tensor.numel()}")
        return Work(tensor)

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(gradient_sum, "BUCKET_BYTES", BYTES)
    return events


def take(model, summing, log, branches=("image", "video"), armed=True):
    """One step: a backward pass for each branch, the last one armed; twice the gradients that the passes make."""
    model.zero_grad()
    x = torch.arange(8.0).view(2, WIDTH) / 8
    for number, branch in enumerate(branches, start=1):
        loss = model(x, branch)
        if armed and number == len(branches):
            summing.arm(branch)
            log.append("last pass")
        loss.backward()
    log.append("pass ends")
    expected = {name: 2 * p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    summing.finish()
    return expected


def check(model, expected):
    for name, parameter in model.named_parameters():
        if name in expected:
            torch.testing.assert_close(parameter.grad, expected[name])
        else:
            assert parameter.grad is None


def whole_gradients(model, branches):
    """Twice the gradients of a step, without anything being summed on the way."""
    for parameter in model.parameters():
        parameter.grad = None
    x = torch.arange(8.0).view(2, WIDTH) / 8
    for branch in branches:
        model(x, branch).backward()
    found = {name: 2 * p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def test_buckets_start_during_the_last_pass_once_it_is_known_what_it_reaches(log):
    torch.manual_seed(0)
    model = TwoBranches()
    expected = whole_gradients(model, ("image", "video"))
    summing = GradientSum(model.parameters())
    take(model, summing, log)
    check(model, expected)
    assert log.index("pass ends") < log.index("start 16")  # the first step learns
    for _ in range(2):
        log.clear()
        take(model, summing, log)
        check(model, expected)
        starts = [i for i, event in enumerate(log) if event.startswith("start")]
        assert len(starts) == 5  # three of the trunk, one of each branch
        assert log.index("last pass") < starts[0]
        assert starts[-1] < log.index("pass ends")
        # At most two are in flight: the third waits for the first.
        assert log[1:5] == ["start 16", "start 16", "wait", "start 16"]


def test_without_a_last_pass_everything_is_summed_at_the_end(log):
    model = TwoBranches()
    expected = whole_gradients(model, ("video",))
    summing = GradientSum(model.parameters())
    for _ in range(2):
        log.clear()
        take(model, summing, log, ("video",), armed=False)
        check(model, expected)
        assert log[0] == "pass ends"


def test_passes_of_another_kind_are_learned_apart(log):
    model = TwoBranches()
    summing = GradientSum(model.parameters())
    for branches in (("image", "video"), ("video", "image"), ("image", "video"), ("video", "image")):
        log.clear()
        expected = whole_gradients_of_copy(model, branches)
        take(model, summing, log, branches)
        check(model, expected)


def whole_gradients_of_copy(model, branches):
    copy = TwoBranches()
    copy.load_state_dict(model.state_dict())
    return whole_gradients(copy, branches)


def test_a_gradient_that_changes_after_its_sum_is_an_error(log):
    model = TwoBranches()
    summing = GradientSum(model.parameters())
    take(model, summing, log)
    summing.arm("video")
    x = torch.ones(2, WIDTH)
    model(x, "video").backward()
    with pytest.raises(RuntimeError, match="came after its bucket was summed"):
        model(x, "video").backward()


def test_what_is_not_trained_is_left_alone(log):
    model = TwoBranches()
    model.trunk.requires_grad_(False)
    summing = GradientSum(model.parameters())
    for _ in range(2):
        log.clear()
        take(model, summing, log, ("video",))
        assert sum(event.startswith("start") for event in log) == 1
