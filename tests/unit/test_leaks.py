"""The check that a test session leaves nothing behind finds what is planted, and lets a clean session pass."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from tests.helpers.commands import run_code
from tests.helpers.leaks import MARK, left_processes, left_shared_memory, real_time_policy

ROOT = Path(__file__).parents[2]
PLANTS = r"""
import os, subprocess, sys, tempfile
from pathlib import Path

def test_process():
    # An orphan in a session of its own: whoever started it is gone.
    start = (
        "from subprocess import DEVNULL as no, Popen\n"
        "print(Popen(['sleep', '600'], stdin=no, stdout=no, stderr=no, start_new_session=True).pid)"
    )
    done = subprocess.run([sys.executable, "-c", start], capture_output=True, text=True, check=True)
    Path(os.environ["PLANTED"]).write_text(done.stdout)

def test_shared_memory():
    Path("/dev/shm", os.environ["SEGMENT"]).write_bytes(b"0")

def test_temporary_file():
    (Path(tempfile.mkdtemp(prefix="planted-temporary-")) / "x").touch()

def test_file_where_it_was_started():
    Path("planted-file.html").touch()

def test_home_is_not_the_users():
    (Path.home() / ".cache").mkdir(exist_ok=True)
    assert Path(os.environ["PLANTED"]).parent not in Path.home().parents

def test_policy():
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        os.sched_getscheduler = lambda pid: os.SCHED_RR

def test_after_the_policy():
    assert os.sched_getscheduler(0) in (os.SCHED_OTHER, os.SCHED_RR)
"""
CLEAN = """
import multiprocessing, tempfile, time
from multiprocessing.shared_memory import SharedMemory

def test_clean():
    with tempfile.TemporaryDirectory(), multiprocessing.get_context("forkserver").Pool(1) as pool:
        assert pool.apply(abs, (-1,)) == 1
    segment = SharedMemory(create=True, size=8)
    segment.close()
    segment.unlink()
"""


def session(folder, tests, grace_s, *options, **environment):
    (folder / "conftest.py").write_text(
        f"from tests.helpers import leaks\nfrom tests.helpers.leaks import *\nleaks.GRACE_S = {grace_s}\n"
    )
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "test_planted.py").write_text(tests)
    environment = os.environ | environment | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.slow
def test_what_a_session_leaves_is_found_and_named_also_by_way_of_workers(tmp_path):
    (tmp_path / "copy").mkdir()
    segment, planted = f"tubelet-planted-{os.getpid()}", tmp_path / "pid"
    try:
        done = session(tmp_path / "copy", PLANTS, 1.0, "-n", "1", SEGMENT=segment, PLANTED=str(planted))
    finally:
        os.kill(int(planted.read_text()), signal.SIGKILL)
        Path("/dev/shm", segment).unlink()
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    found = [line for line in done.stdout.splitlines() if line.startswith("the session left ")]
    assert len(found) == 4, done.stdout
    for line, thing in zip(
        found,
        (f"process {planted.read_text().strip()} (sleep 600)", segment, "planted-temporary-", "planted-file.html"),
        strict=True,
    ):
        assert thing in line
    assert re.search(r" \(a folder with x, made at [\d:]+ during .*test_planted\.py::test_temporary_file", found[2])
    assert "test_policy left its process with the policy SCHED_RR" in done.stdout
    assert "7 passed, 1 error" in done.stdout or "6 passed, 2 error" in done.stdout, done.stdout


def test_a_session_that_leaves_nothing_passes_and_its_own_folders_are_gone(tmp_path):
    (tmp_path / "copy").mkdir()
    with tempfile.TemporaryDirectory() as temporary:  # sockets have short names, which `tmp_path` is too long for
        done = session(tmp_path / "copy", CLEAN, 10.0, "-p", "no:xdist", TMPDIR=temporary)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "left behind" not in done.stdout and done.stderr == ""
        assert list(Path(temporary).iterdir()) == []


def test_a_fork_is_found_by_the_file_that_it_inherits_and_a_stranger_is_not(tmp_path):
    lock = os.open(tmp_path / "session", os.O_CREAT | os.O_RDWR)
    child = os.fork()
    if child == 0:
        signal.pause()
        os._exit(0)
    stranger = subprocess.Popen(["sleep", "600"], env={MARK: "another"})
    try:
        assert [line.split()[1] for line in left_processes("mark", tmp_path)] == [str(child)]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        stranger.kill()
        stranger.wait()
        os.close(lock)
    assert left_processes("mark", tmp_path) == []


def test_shared_memory_that_a_process_uses_or_that_was_there_is_nobodys_leftover(tmp_path):
    for name in ("before", "open", "mapped", "left"):
        (tmp_path / name).write_bytes(bytes(4096))
    mapped = torch.from_file(str(tmp_path / "mapped"), shared=True, size=4096, dtype=torch.uint8)
    with (tmp_path / "open").open():
        left = left_shared_memory({"before"}, (tmp_path / "left").stat().st_ctime, tmp_path)
    assert left == [f"shared memory {tmp_path / 'left'}"] and len(mapped) == 4096


def test_policies_are_named_however_they_are_inherited(monkeypatch):
    assert real_time_policy() is None
    monkeypatch.setattr(os, "sched_getscheduler", lambda pid: os.SCHED_FIFO | os.SCHED_RESET_ON_FORK)
    assert real_time_policy() == "SCHED_FIFO"


def test_commands_in_this_process_leave_its_state_as_it_was(tmp_path):
    before = (list(sys.argv), list(sys.path), Path.cwd(), dict(os.environ), signal.getsignal(signal.SIGTERM))
    done = run_code(
        "import os, signal, sys, torch, warnings\n"
        "sys.path.append('x'); os.environ['PLANTED'] = '1'; torch.manual_seed(5); torch.set_default_dtype(torch.half)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); warnings.simplefilter('error')\n"
        "print(os.getcwd(), __name__); sys.exit('a sentence')",
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (1, f"{tmp_path} __main__\n", "a sentence\n")
    assert before == (sys.argv, sys.path, Path.cwd(), dict(os.environ), signal.getsignal(signal.SIGTERM))
    assert run_code("import torch; print(torch.get_default_dtype())").stdout == "torch.float32\n"
