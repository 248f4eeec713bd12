"""Jobs in processes of their own, and what is said of one that dies."""

import os
import signal
import time

import pytest

from tubelet.data.jobs import reading, run_all
from tubelet.data.workers import Readings
from tubelet.types import TubeletError


def length(name):
    with reading(name):
        if name.startswith("fatal"):
            os.kill(os.getpid(), signal.SIGKILL)
        return len(name)


def test_jobs_run_here_or_over_processes_with_the_same_results():
    for workers in (1, 2):
        found = {}
        run_all(length, ["a.mp4", "bc.mp4", "def.mp4"], workers, found.__setitem__, "go on")
        assert found == {"a.mp4": 5, "bc.mp4": 6, "def.mp4": 7}


def test_the_file_that_a_process_died_of_is_named():
    jobs = ["a.mp4", "fatal.mp4"]
    with pytest.raises(TubeletError, match=r"while .*fatal\.mp4 was read: memory .* or the file crashes .*; go on$"):
        run_all(length, jobs, 2, lambda job, result: None, "go on")


def test_readings_tell_who_reads_what_for_how_long_the_longest_first():
    readings = Readings(3)
    with readings.of(2, "old.mp4"):
        time.sleep(0.02)
        with readings.of(0, "new.mp4"):
            old, new = readings.all()
            assert (old.worker, old.file, new.worker, new.file) == (2, "old.mp4", 0, "new.mp4")
            assert old.pid == new.pid == os.getpid() and old.seconds >= 0.02 > new.seconds >= 0
            assert readings.why(f"DataLoader worker (pid {os.getpid()}) was killed").startswith(" while old.mp4 or new")
            assert readings.why("DataLoader worker (pid 1) was killed") == ": memory may have run out (lower --workers)"
    assert readings.all() == []
