"""What processes leave behind: a process family is watched while it lives, and searched for when it should be gone."""

import os
import re
import time
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")


class Family:
    """A process and all that it starts, wherever they go: what they share in memory, and their temporary folder.

    Attributes:
        root: the process.
        temporary: the folder that is its TMPDIR.
        members: each process that was ever seen.
        shared: names in /dev/shm that any of them had mapped, by which families side by side are distinguished.
    """

    def __init__(self, pid: int, temporary: Path) -> None:
        self.root = psutil.Process(pid)
        self.temporary = temporary
        self.members = {self.root}
        self.shared: set[str] = set()

    def find(self) -> list[psutil.Process]:
        """Record all members that are alive; returns them."""
        for member in list(self.members):
            try:
                self.members.update(member.children(recursive=True))
            except psutil.Error:
                continue
        for member in self.members:
            try:
                maps = Path(f"/proc/{member.pid}/maps").read_text()
            except OSError:
                continue
            self.shared.update(re.findall(r"/dev/shm/(\S+)$", maps, re.MULTILINE))
        return [member for member in self.members if lives(member)]

    def wait_for(self, condition, seconds: float = 90) -> psutil.Process:
        """The first member that a condition is true of, as soon as there is one."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for member in self.find():
                try:
                    if condition(member):
                        return member
                except psutil.Error:
                    continue
            assert lives(self.root), "the command ended before"
            time.sleep(0.01)
        raise AssertionError(f"none of {self.find()} in {seconds} s")

    def left(self, seconds: float = 60) -> list[str]:
        """What is left, if anything still is after so long."""
        deadline = time.monotonic() + seconds
        while (found := self._left()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def _left(self) -> list[str]:
        found = [f"process {member.pid}" for member in self.members if lives(member)]
        found += [f"/dev/shm/{name}" for name in self.shared if (SHARED_MEMORY / name).exists()]
        pids = {str(member.pid) for member in self.members}
        found += [str(file) for file in SHARED_MEMORY.iterdir() if pids & set(re.split(r"\D+", file.name))]
        return found + [str(file) for file in self.temporary.iterdir()]


def lives(process: psutil.Process) -> bool:
    """Whether a process is there and is no zombie, which waits for whoever started it."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def words(process: psutil.Process) -> str:
    """A process's command line."""
    return " ".join(process.cmdline())


def read_log(path: Path) -> str:
    """What a command printed."""
    return path.read_text(errors="replace") if path.exists() else ""


def in_temporary(folder: Path) -> None:
    """Make a folder this process's TMPDIR."""
    import tempfile

    folder.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(folder)
    tempfile.tempdir = None
