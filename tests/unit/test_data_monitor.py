"""What a run reports about its data: rates of workers and device, and steps that wait."""

import logging
import time

import pytest
import torch

from tubelet.train.data_monitor import DataMonitor, StepTimer
from tubelet.train.metrics_buffer import MetricsBuffer
from tubelet.train.progress import ProgressLine

CPU = torch.device("cpu")


class FakeEvent:
    """A CUDA event at a time of its own; asking for times before the device has reached it is an error."""

    def __init__(self, clock):
        self.clock = clock

    def record(self):
        self.time = self.clock["ms"]

    def elapsed_time(self, other):
        assert self.clock["done"], "the device has not done the step"
        return other.time - self.time

    def synchronize(self):
        self.clock["done"] = True


@pytest.fixture
def clock(monkeypatch):
    clock = {"ms": 0.0, "done": False}
    monkeypatch.setattr("torch.cuda.Event", lambda enable_timing=False: FakeEvent(clock))
    return clock


def step(timer, clock, idle_ms, busy_ms):
    clock["ms"] += idle_ms
    timer.data_arrived(time.perf_counter())
    clock["ms"] += busy_ms
    return timer.lap(8)


def test_on_cuda_the_devices_wait_is_that_between_two_steps_and_is_known_when_they_are_done(clock):
    timer = StepTimer(torch.device("cuda"))
    assert "device_wait_fraction" not in step(timer, clock, 500, 30)
    later = step(timer, clock, 10, 30)["device_wait_fraction"]
    step(timer, clock, 0, 30)
    clock["done"] = True
    assert later() == 0.25
    timer.restart()  # after an evaluation
    assert "device_wait_fraction" not in step(timer, clock, 5000, 30)


def test_on_a_cpu_the_wait_is_the_hosts():
    timer = StepTimer(CPU)
    timer.start_time, requested = time.perf_counter() - 10, time.perf_counter() - 4
    timer.data_arrived(requested)
    metrics = timer.lap(20)
    assert metrics == {
        "clips_per_s": pytest.approx(2, rel=0.01),
        "data_wait_fraction": pytest.approx(0.4, rel=0.01),
    }


def test_functions_in_a_row_are_called_when_the_device_has_done_the_step(clock, monkeypatch):
    empty = torch.empty
    monkeypatch.setattr("torch.empty", lambda *size, pin_memory=False: empty(*size))
    rows = []
    buffer = MetricsBuffer(rows.append, torch.device("cuda"))
    buffer.add({"step": 1, "loss": torch.tensor(2.0), "device_wait_fraction": lambda: clock["done"] and 0.5})
    assert not rows and not clock["done"]
    buffer.flush()
    assert rows == [{"step": 1, "loss": 2.0, "device_wait_fraction": 0.5}]


def observe(monitor, steps, wait, first=1, **more):
    for number in range(first, first + steps):
        monitor.observe(
            {"step": number, "clips_per_s": 20.0, "data_wait_fraction": wait, "data_seconds": 0.8} | more, 16
        )


def test_rates_of_workers_and_device_are_reported_once(caplog):
    caplog.set_level(logging.INFO, "tubelet")
    monitor = DataMonitor(3, 8, lambda *_: None)  # one of two processes
    observe(monitor, 200, 0.0)
    (record,) = caplog.records
    assert record.getMessage() == (
        "data: 3 workers make 30.0 samples/s and the device takes 10.0, measured over 20 steps"
    )
    assert "the training process (--workers 0) makes 10.0" in _rates(DataMonitor(0, 8, print))
    assert "1 worker makes 10.0" in _rates(DataMonitor(1, 8, print))


def _rates(monitor):
    observe(monitor, 40, 0.0)
    return monitor.rates()


def test_an_alert_names_the_remedy_where_a_fifth_of_50_steps_is_spent_waiting():
    alerts = []
    monitor = DataMonitor(1, 16, lambda *alert: alerts.append(alert))
    observe(monitor, 10, 0.9)  # the first steps do not count
    observe(monitor, 49, 0.5, first=11)
    assert not alerts
    observe(monitor, 100, 0.5, first=60)
    assert alerts == [
        (
            60,
            "data",
            "50 % of the time of the last 50 steps was spent waiting for data: 1 worker makes 20.0 samples/s and the "
            "device takes 40.0; raise --workers, or read from shards (tubelet shard)",
        )
    ]


@pytest.mark.parametrize(("wait", "more"), [(0.19, {}), (0.9, {"device_wait_fraction": 0.02})])
def test_no_alert_where_the_device_hardly_waits(wait, more):
    alerts = []
    observe(DataMonitor(1, 16, lambda *alert: alerts.append(alert)), 100, wait, **more)
    assert not alerts


def test_clips_of_short_videos_are_reported_once(caplog):
    observe(DataMonitor(1, 16, lambda *alert: None), 3, 0.1, short_clips=2)
    assert caplog.text.count("step 1 has 2 clips of videos that are too short") == caplog.text.count("too short") == 1


def test_the_progress_line_has_the_devices_wait_where_it_is_known(caplog):
    caplog.set_level(logging.INFO, "tubelet")
    row = {
        "step": 1,
        "loss": 1.0,
        "lr": 1e-3,
        "clips_per_s": 1.0,
        "data_wait_fraction": 0.5,
        "device_wait_fraction": 0.1,
    }
    row |= dict.fromkeys(("bad_files", "skipped_steps", "rewinds", "failed_saves"), 0)
    ProgressLine(None, 1, 0, None).show(row)
    assert "wait 10%" in caplog.text
