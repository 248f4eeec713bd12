"""On CUDA a checkpoint's copy runs beside the next step: which stream waits for what, in which order."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from tubelet.checkpoint.run import list_checkpoints, read_checkpoint
from tubelet.config import TrainConfig, vit_pico
from tubelet.train import checkpointer as module
from tubelet.train.checkpointer import Checkpointer
from tubelet.train.optim import build_optimizer
from tubelet.vjepa import VJEPA


@pytest.fixture
def events(monkeypatch):
    """What streams and events without a device are asked to do."""
    log, current = [], ["compute"]

    class Stream:
        def __init__(self, name="copies"):
            self.name = name

        def wait_stream(self, other):
            log.append(f"{self.name} wait for {other.name}")

        def wait_event(self, event):
            log.append(f"{self.name} waits for {event.name}")

    class Event:
        def record(self):
            self.name = f"the event after {log[-1]} on {current[-1]}"

        def synchronize(self):
            log.append(f"writer waits for {self.name}")

    @contextmanager
    def stream(used):
        current.append(used.name)
        yield
        current.pop()

    real = module.copy_to_host

    def copy_to_host(state):
        log.append("copies")
        assert current[-1] == "copies"
        return real(state)

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream(current[-1]))
    monkeypatch.setattr(module, "copy_to_host", copy_to_host)
    return log


def test_the_next_update_waits_for_the_copy_and_the_writer_too(events, tmp_path):
    config = TrainConfig(model=vit_pico(), precision="fp32")
    model = VJEPA(config.model)
    optimizer = build_optimizer(model, config.optim)
    ctx = SimpleNamespace(
        device=SimpleNamespace(type="cuda"),
        sharded=False,
        is_rank0=True,
        all_reduce=lambda tensor: None,
        run_on_rank0=lambda work: work(),
    )
    run = SimpleNamespace(path=tmp_path, checkpoint=tmp_path / "an older one")  # so that the save is not awaited
    saver = Checkpointer(run, 0, config, model, optimizer, ctx)
    optimizer.step()
    assert events == []
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    assert saver.save(1) is None
    optimizer.step()
    optimizer.step()
    saver.wait(required=True)
    saver.close()
    copied = "the event after copies on copies"
    assert events[:2] == ["copies wait for compute", "copies"]
    assert sorted(events[2:]) == [f"compute waits for {copied}", f"writer waits for {copied}"]
    (path,) = list_checkpoints(tmp_path)
    assert all(
        torch.equal(value, expected[name]) for name, value in read_checkpoint(path)[0].items() if name in expected
    )
