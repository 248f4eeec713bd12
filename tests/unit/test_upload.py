"""On CUDA pixels and masks go to the device on a stream of their own: the order of what streams are asked to do."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from tubelet.data.batch import Batch
from tubelet.grid import Mask, Modality
from tubelet.train.distributed import DistContext


@pytest.fixture
def batch():
    pixels = torch.zeros(2, 3, 4, 8, 8, dtype=torch.uint8)
    return Batch(Modality.VIDEO, pixels, [Mask(torch.zeros(2, 3).long(), torch.ones(2, 5).long())] * 2, 1.0)


def test_copies_run_on_a_stream_of_their_own_that_only_the_compute_stream_waits_for(batch, monkeypatch):
    log, current = [], ["compute"]

    class Stream:
        def __init__(self, name="upload"):
            self.name = "upload" if isinstance(name, torch.device) else name

        def wait_stream(self, other):
            log.append(f"{self.name} waits for {other.name}")

    @contextmanager
    def stream(used):
        current.append(used.name)
        yield
        current.pop()

    def to(batch, device):
        assert device.type == "cuda"
        log.append(f"copy on {current[-1]}")
        return batch

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream(current[-1]))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, used: log.append(f"used on {used.name}"))
    monkeypatch.setattr(Batch, "to", to)
    ctx = DistContext(torch.device("cuda", 0))
    for _ in range(2):
        log.clear()
        ctx.upload([batch, batch])
        # Nothing makes the upload stream wait: it may run while the step before computes.
        assert log == ["copy on upload"] * 2 + ["compute waits for upload"] + ["used on compute"] * 10


def test_elsewhere_nothing_is_asked_of_streams(batch, monkeypatch):
    monkeypatch.setattr(torch, "cuda", SimpleNamespace())
    (same,) = DistContext(torch.device("cpu")).upload([batch])
    assert same.pixels is batch.pixels
