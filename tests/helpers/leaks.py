"""Every test session has a home, a cache and a temporary folder of its own, and fails if it leaves anything behind.

Looked for at the end: processes, shared memory, files in the temporary folder, files in the working copy; and after
each test a real-time scheduling policy, which everything started later would inherit.
"""

import gc
import getpass
import os
import shutil
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Collection, Iterator
from contextlib import suppress
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

import psutil
import pytest

MARK = "TUBELET_TEST_SESSION"  # in the environment of all that a session starts
SHARED_MEMORY = Path("/dev/shm")
CACHES = {"__pycache__", "build", "dist"}
# What libraries write into the temporary folder whatever its setting: a session file of onnxruntime, and the compiled
# headers of PyTorch's inductor.
LIBRARIES = {".ses", f"torchinductor_{getpass.getuser()}"}
FILE_TIME_S = 0.01  # times of files are those of the kernel's last tick
GRACE_S = 15.0  # what ends by itself needs a moment on a busy machine


def redirect(root: Path) -> None:
    """Point home, caches and temporary files of this process and all it starts to folders in `root`."""
    # pytest's own folders stay where they are: it keeps those of the last sessions to be looked into.
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    places = {"HOME": "home", "XDG_CACHE_HOME": "home/.cache", "XDG_CONFIG_HOME": "home/.config", "TMPDIR": "tmp"}
    places |= {"HF_HOME": "home/.cache/huggingface", "TORCH_HOME": "home/.cache/torch"}
    places |= {"MPLCONFIGDIR": "home/.cache/matplotlib", "TORCHINDUCTOR_CACHE_DIR": "home/.cache/inductor"}
    for name, place in places.items():
        (root / place).mkdir(parents=True, exist_ok=True)
        os.environ[name] = str(root / place)
    tempfile.tempdir = None


def left_processes(mark: str, root: Path) -> list[str]:
    """Processes of a session besides this one and the helpers of its `multiprocessing`, which end with it.

    Args:
        mark: the value of `MARK` in their environment.
        root: a folder in which this process holds a file open that forks inherit.
    """
    ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    for name in ("resource_tracker._resource_tracker._pid", "forkserver._forkserver._forkserver_pid"):
        module, *attributes = name.split(".")
        found: Any = sys.modules.get(f"multiprocessing.{module}")
        for attribute in attributes:
            found = getattr(found, attribute, None)
        ours.add(found)
    left = []
    for process in psutil.process_iter():
        if process.pid in ours:
            continue
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                # A child that nobody has waited for is gone with this process.
                continue
            if process.environ().get(MARK) == mark or any(Path(f.path).parent == root for f in process.open_files()):
                left.append(f"process {process.pid} ({' '.join(process.cmdline())[:200]})")
        except psutil.Error:  # it has ended, or belongs to somebody else
            continue
    return left


def left_shared_memory(before: Collection[str], since: float, folder: Path = SHARED_MEMORY) -> list[str]:
    """Segments that are new, are this user's, and that no living process has mapped or open.

    Args:
        before: the names that were there.
        since: when the session began, in seconds since the epoch.
        folder: where they are.
    """
    if not folder.is_dir():
        return []
    new = {}
    for path in folder.iterdir():
        try:
            status = path.stat()
        except OSError:  # it is gone
            continue
        if path.name not in before and status.st_uid == os.getuid() and status.st_ctime >= since - 1:
            new[str(path)] = path
    if not new:
        return []
    for process in psutil.process_iter():  # another session's are in use
        try:
            # Not psutil's `memory_maps`, for which the kernel counts the pages of all processes.
            maps = Path(f"/proc/{process.pid}/maps").read_text(errors="surrogateescape")
            used = {f.path for f in process.open_files()} | {path for path in new if f" {path}\n" in maps}
        except (psutil.Error, OSError):
            continue
        for path in used & new.keys():
            del new[path]
    return [f"shared memory {path}" for path in sorted(new) if Path(path).exists()]


def files_in(root: Path) -> set[str]:
    """The files below a folder, but for hidden ones and caches of tools."""
    found = set()
    for folder, folders, files in os.walk(root):
        folders[:] = [f for f in folders if not f.startswith(".") and f not in CACHES and not f.endswith(".egg-info")]
        found |= {os.path.join(folder, f) for f in files if not f.startswith(".")}  # noqa: PTH118
    return found


def real_time_policy() -> str | None:
    """The real-time scheduling policy of this process, which is never meant to have one."""
    if not hasattr(os, "sched_getscheduler"):
        return None
    policy = os.sched_getscheduler(0) & ~getattr(os, "SCHED_RESET_ON_FORK", 0)
    return {os.SCHED_FIFO: "SCHED_FIFO", os.SCHED_RR: "SCHED_RR"}.get(policy)


def stop_helpers() -> None:
    """End this process's fork server and resource tracker, which unlinks what killed processes had registered."""
    for module, name in (("forkserver", "_forkserver"), ("resource_tracker", "_resource_tracker")):
        helper: Any = getattr(sys.modules.get(f"multiprocessing.{module}"), name, None)
        if stop := getattr(helper, "_stop", None):  # private, and waits for ever if a process lives that inherited it
            thread = threading.Thread(target=stop, daemon=True)
            thread.start()
            thread.join(GRACE_S)


def describe(path: Path, phases: Collection[tuple[float, float, str]]) -> str:
    """What a file or folder contains, when it was made, and what ran then.

    Args:
        path: what was left.
        phases: start, stop and name of each phase of each test, in seconds since the epoch.
    """
    inside = sorted(path.rglob("*")) if path.is_dir() else []
    times = []
    for entry in (path, *inside):
        with suppress(OSError):  # it is gone
            times.append(entry.lstat().st_mtime)
    if not times:
        return f"{path} (gone by now)"
    contents = f"a file of {path.lstat().st_size} bytes"
    if path.is_dir():
        names = ", ".join(str(entry.relative_to(path)) for entry in inside[:10])
        contents = f"a folder with {names}{', ...' * (len(inside) > 10)}" if inside else "an empty folder"
    made = min(times)
    running = sorted({name for start, stop, name in phases if start - FILE_TIME_S <= made <= stop})
    when = time.strftime("%H:%M:%S", time.localtime(made))
    return f"{path} ({contents}, made at {when} during {', '.join(running) or 'no test'})"


class Leftovers:
    """What was there when a session began, and what it left.

    Attributes:
        root: the folder of home, cache and temporary files.
        phases: start, stop and name of each phase of each test, in seconds since the epoch.
        found: a sentence for each thing that was left.
    """

    def __init__(self, working_copy: Path) -> None:
        """Args:
        working_copy: the repository.
        """
        self.began, self.mark, self.working_copy = time.time(), uuid.uuid4().hex, working_copy
        self.root = Path(tempfile.mkdtemp(prefix="tubelet-")).resolve()
        self.lock = os.open(self.root / "session", os.O_CREAT | os.O_RDWR)
        os.set_inheritable(self.lock, True)
        # After `multiprocessing` has removed what it keeps there, which it does with the priority -100.
        Finalize(None, shutil.rmtree, (self.root,), {"ignore_errors": True}, exitpriority=-200)
        redirect(self.root)
        os.environ[MARK] = self.mark
        self.shared = {path.name for path in SHARED_MEMORY.iterdir()} if SHARED_MEMORY.is_dir() else set()
        self.files = files_in(working_copy)
        self.phases: list[tuple[float, float, str]] = []
        self.found: list[str] = []

    def find(self) -> list[str]:
        """A line for each thing that is there and was not."""
        left = sorted(path for path in (self.root / "tmp").iterdir() if not self._is_ours(path))
        temporary = [f"temporary file {describe(path, self.phases)}" for path in left]
        written = [f"file {path}" for path in sorted(files_in(self.working_copy) - self.files)]
        processes = left_processes(self.mark, self.root)
        return processes + left_shared_memory(self.shared, self.began) + temporary + written

    def _is_ours(self, path: Path) -> bool:
        """Whether `multiprocessing` removes it at the end of this process, or it is a library's own."""
        if path.name in LIBRARIES:
            return True
        process = sys.modules.get("multiprocessing.process")
        return process is not None and str(path) == process.current_process()._config.get("tempdir")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note when a phase of a test ran, in whatever process."""
        self.phases.append((report.start, report.stop, report.nodeid))

    def finish(self, grace_s: float | None = None) -> None:
        """Wait until all that ends by itself has, note what has not."""
        gc.collect()  # what only reference cycles keep is closed
        stop_helpers()
        deadline = time.monotonic() + (GRACE_S if grace_s is None else grace_s)
        while (left := self.find()) and time.monotonic() < deadline:
            time.sleep(0.2)
        self.found += left
        os.close(self.lock)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # workers inherit the environment of who starts them
        config.stash[_KEY] = Leftovers(config.rootpath)
        config.pluginmanager.register(config.stash[_KEY])


_KEY = pytest.StashKey[Leftovers]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    yield
    if policy := real_time_policy():
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        pytest.fail(f"{item.nodeid} left its process with the policy {policy}: encode or decode in a child process")


@pytest.hookimpl(wrapper=True, trylast=True)  # after xdist has ended its workers, before the summary is printed
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    yield
    if leftovers := session.config.stash.get(_KEY, None):
        leftovers.finish()
        if leftovers.found and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    leftovers = config.stash.get(_KEY, None)
    if leftovers is not None and leftovers.found:
        terminalreporter.section("left behind", red=True, bold=True)
        for thing in leftovers.found:
            terminalreporter.line(f"the session left {thing} behind: end or remove it in the test that makes it")
