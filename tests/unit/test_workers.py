"""Worker processes: jobs and loaders, what is reported of one that dies, and what they need to start."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch.utils.data import Dataset, IterableDataset

from tests.helpers.worker_jobs import length, make_unreadable
from tubelet.data import process_map as process_map_module
from tubelet.data import worker_loader, worker_status
from tubelet.data.process_map import process_map
from tubelet.data.worker_loader import WorkerLoader, require_main_guard, require_shared_memory, translate_worker_crash
from tubelet.data.worker_status import (
    NO_MAIN_GUARD,
    StallDetector,
    WorkerCrashError,
    WorkerStatus,
    explain_exit,
    oom_kills,
)
from tubelet.errors import DecodeError, TubeletError


def ignore(job, result):
    pass


def test_jobs_run_here_or_over_processes_with_the_same_results():
    for count in (1, 2):
        found = {}
        process_map(length, ["a.mp4", "bc.mp4", "def.mp4"], count, found.__setitem__, "go on")
        assert found == {"a.mp4": 5, "bc.mp4": 6, "def.mp4": 7}


@pytest.mark.parametrize(
    ("job", "kind", "sentence"),
    [
        (
            "fatal.mp4",
            TubeletError,
            r"^a worker process ended .* \(ended by SIGKILL\) while reading fatal\.mp4.*; go on$",
        ),
        ("abort.mp4", TubeletError, r"SIGABRT\) while .*: the stack was smashed: the decoder crashed on this file"),
        ("bad.mp4", TubeletError, r"^bad\.mp4: a sentence$"),
        ("unknown.mp4", KeyError, r"^'unknown\.mp4'\n(.|\n)*in length\n"),
    ],
)
def test_how_a_job_ended_is_reported(job, kind, sentence, capfd):
    with pytest.raises(kind, match=sentence):
        process_map(length, [job], 1, ignore, "go on", isolated=True)
    assert ("the stack was smashed" in capfd.readouterr().err) == (job == "abort.mp4")


@pytest.mark.parametrize(
    ("work", "job", "sentence"),
    [(length, ctypes.pointer(ctypes.c_int(0)), "pointers"), (make_unreadable, "a.mp4", "invalid literal for int")],
)
def test_a_job_or_a_result_that_cannot_be_passed_is_an_error_and_no_endless_wait(monkeypatch, work, job, sentence):
    monkeypatch.setattr(process_map_module, "EXIT_GRACE_S", 0.1)
    with pytest.raises(ValueError, match=sentence):
        process_map(work, [job], 1, ignore, "go on", isolated=True)


def test_a_process_of_jobs_ends_with_a_job_that_takes_too_long():
    with pytest.raises(TimeoutError):
        process_map(time.sleep, [60.0], 1, ignore, "go on", timeout_s=0.5, isolated=True)


@pytest.mark.parametrize(
    ("code", "files", "words", "before", "now", "sentence"),
    [
        (-9, [], "", 3, 3, " (ended by SIGKILL): killed by another process, not for lack of memory"),
        (
            -9,
            ["a"],
            "",
            3,
            4,
            " (ended by SIGKILL) while reading a: the kernel killed a process because it was out of memory",
        ),
        (-9, [], "", None, None, " (ended by SIGKILL): possibly out of memory (lower --workers)"),
        (-11, ["a"], "", 3, 3, " (ended by SIGSEGV) while reading a: the decoder crashed on this file"),
        (-7, [], "", 3, 3, " (ended by SIGBUS): /dev/shm is full"),
        (3, ["a", "b"], "no", 3, 3, " (exit code 3) while reading a or b: no"),
        (NO_MAIN_GUARD, [], "", 3, 3, ": the script that started it has no"),
    ],
)
def test_an_exit_is_explained_by_its_code_and_the_kernel_counters(
    code, files, words, before, now, sentence, monkeypatch
):
    monkeypatch.setattr(worker_status, "oom_kills", lambda: now)
    assert explain_exit(code, files, words, before).startswith(sentence)


def test_the_kernel_counts_what_it_ends_for_memory():
    if sys.platform == "linux":
        assert oom_kills() is not None


def test_worker_status_lists_active_reads_longest_first():
    status = WorkerStatus(3)
    with status.track(2, "old.mp4"):
        time.sleep(0.02)
        with status.track(0, "new.mp4"):
            old, new = status.active()
            assert (old.worker, old.file, new.worker, new.file) == (2, "old.mp4", 0, "new.mp4")
            assert old.pid == new.pid == os.getpid() and old.seconds >= 0.02 > new.seconds >= 0
            assert (
                status.explain(f"DataLoader worker (pid {os.getpid()}) was killed")
                == " while reading old.mp4 or new.mp4"
            )
            killed = f"DataLoader worker (pid {os.getpid()}) is killed by signal: Segmentation fault."
            assert status.explain(killed).startswith(" (ended by SIGSEGV) while reading old.mp4")
    assert status.active() == []


def test_a_crash_is_explained_by_the_loader_whose_worker_the_message_names_also_when_it_is_gone():
    with (
        pytest.raises(WorkerCrashError, match=r"ended by SIGSEGV\) while reading new\.mp4"),
        translate_worker_crash("go on"),
    ):
        old, new = (WorkerLoader([0], 0, status=WorkerStatus(1)).status for _ in range(2))
        old.processes = [SimpleNamespace(pid=1, exitcode=-signal.SIGTERM)]
        new.processes = [SimpleNamespace(pid=2, exitcode=-signal.SIGTERM)]
        reading = new.track(0, "new.mp4")
        reading.__enter__()  # and never left, as by a worker that crashed
        raise RuntimeError(f"DataLoader worker (pid {os.getpid()}) is killed by signal: Segmentation fault. ")


def test_a_worker_that_waits_for_a_disk_is_given_up_and_one_that_computes_is_not(monkeypatch):
    now, used = 0.0, {1: 0.0, 2: 0.0}

    class Process:
        def __init__(self, pid):
            self.pid = pid

        def cpu_times(self):
            return used[self.pid], 0.0

    monkeypatch.setattr(worker_status.time, "monotonic", lambda: now)
    monkeypatch.setattr(worker_status.psutil, "Process", Process)
    stalls = StallDetector()
    for now in range(290):
        used[2] += 0.01
        stalls.check([(1, "lost.mp4", float(now)), (2, "long.mp4", float(now))])
    now = 300.0
    with pytest.raises(
        TubeletError, match=r"^lost\.mp4: no data for the last 300 s of a read of 300 s; .*disk or server responds"
    ):
        stalls.check([(1, "lost.mp4", now), (2, "long.mp4", now)])
    stalls.check([(1, "next.mp4", 0.0), (2, "long.mp4", now)])


class Items(Dataset):
    """What `make` makes of each number."""

    def __init__(self, make, count=4):
        self.make, self.count = make, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.make(index)


class Lost:
    """What cannot be handed over, as a tensor when /dev/shm is full."""

    def __reduce__(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


def end_process(index):
    os._exit(7)


def damaged(index):
    raise DecodeError("a.mp4", "corrupt frames near 3.2 s")


class Broken:
    """What ends its worker and raises an error where it is received."""

    def __init__(self):
        self.sender = os.getpid()

    def __reduce__(self):
        return break_connection, (self.sender,)


def break_connection(sender):
    os.kill(sender, signal.SIGKILL)
    raise ConnectionResetError


class ItemStream(IterableDataset):
    def __iter__(self):
        yield 0
        damaged(1)


@pytest.mark.parametrize("options", [{"batch_size": None}, {"batch_size": 2}, {"batch_size": 2, "collate_fn": list}])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_of_a_worker_is_raised_with_its_class_and_fields(workers, options):
    for dataset in (Items(damaged), ItemStream()):
        with pytest.raises(DecodeError) as raised:
            list(WorkerLoader(dataset, workers, **options))
        assert (raised.value.path, raised.value.reason) == ("a.mp4", "corrupt frames near 3.2 s")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda index: Lost(),
            r"\(exit code 1\): /dev/shm: it is full; start the container with more \(docker run --shm-size\)",
        ),
        (end_process, r"^a worker process ended unexpectedly \(exit code 7\); go on$"),
        (lambda index: time.sleep(60), "timed out after 0.5 seconds"),
    ],
)
@pytest.mark.slow
def test_no_wait_for_a_worker_is_endless(make, sentence, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)  # for a worker that does not end
    timeout_s = 0.5 if "timed" in sentence else None
    loader = WorkerLoader(Items(make), 1, batch_size=None, timeout_s=timeout_s)
    began = time.monotonic()
    with pytest.raises((TubeletError, RuntimeError), match=sentence), translate_worker_crash("go on"):
        list(loader)
    assert time.monotonic() - began < 30


def test_a_dead_worker_is_found_before_pytorch_opens_files_that_its_signal_would_leave(monkeypatch):
    opened = []
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", opened.append)
    with pytest.raises(WorkerCrashError, match=r"ended by SIGKILL"), translate_worker_crash("go on"):
        list(WorkerLoader(Items(lambda index: Broken()), 1, batch_size=None))
    assert opened == []


@pytest.mark.slow
def test_a_slow_worker_is_waited_for_and_a_loader_is_used_twice(monkeypatch):
    monkeypatch.setattr(worker_loader, "POLL_S", 0.1)
    loader = WorkerLoader(Items(lambda index: time.sleep(0.4) or index), 2, batch_size=None)
    assert [list(loader) for _ in range(2)] == [[0, 1, 2, 3]] * 2


def leave_tensor(index):
    Path(worker_status.SHARED_MEMORY, f"torch_{os.getpid()}_left").touch()
    return os.getpid()


def test_what_killed_workers_leave_in_shared_memory_goes_with_their_loader():
    loader = WorkerLoader(Items(leave_tensor), 1, batch_size=None)
    (worker,) = set(loader)
    left = Path(worker_status.SHARED_MEMORY, f"torch_{worker}_left")
    assert left.exists()
    del loader
    assert not left.exists()


def test_room_for_what_is_handed_over_is_checked_before(monkeypatch):
    room = namedtuple("room", "f_bavail f_frsize")
    monkeypatch.setattr(os, "statvfs", lambda path: room(64, 2**20))
    require_shared_memory(2**20, workers=4)
    with pytest.raises(TubeletError, match=r"/dev/shm: 67 MB are free, but 4 workers need 151 MB .* --shm-size 1g"):
        WorkerLoader(Items(str), 4, item_bytes=2**24)
    WorkerLoader(Items(str), 0, item_bytes=2**24)


UNGUARDED_SCRIPT = """
import multiprocessing, sys
multiprocessing.set_start_method(sys.argv[1], force=True)
from tubelet.data.worker_loader import WorkerLoader, translate_worker_crash
with translate_worker_crash("go on"):
    list(WorkerLoader([1, 2], 1, timeout_s=200))
"""


@pytest.mark.slow
def test_a_script_without_a_guard_is_reported_at_once(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED_SCRIPT)
    done = subprocess.run([sys.executable, script, "spawn"], capture_output=True, text=True, timeout=150)
    assert done.returncode == 1
    assert "bootstrapping" not in done.stderr
    assert 'has no `if __name__ == "__main__":` guard' in done.stderr.splitlines()[-1]


def test_a_process_that_is_being_started_ends_before_it_starts_others(monkeypatch):
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    require_main_guard()
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    require_main_guard()
    assert codes == [NO_MAIN_GUARD]


def test_the_start_method_is_fork_unless_another_was_chosen_which_needs_a_file(monkeypatch):
    method = None
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: method)
    if sys.platform == "linux":
        assert worker_loader._start_method() == "fork"
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>", raising=False)
    method = "forkserver"
    with pytest.raises(TubeletError, match=r"by forkserver from a script that is not a file.*0 workers"):
        worker_loader._start_method()


def test_jobs_need_no_guard_and_no_file():
    script = "from tubelet.data.process_map import process_map\nimport math\n"
    script += "process_map(math.sqrt, [4.0, 9.0], 2, lambda job, result: print(result), 'go on')\n"
    done = subprocess.run([sys.executable], input=script, capture_output=True, text=True, timeout=120)
    assert sorted(done.stdout.split()) == ["2.0", "3.0"], done.stderr
