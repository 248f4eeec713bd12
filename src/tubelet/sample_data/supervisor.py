"""A program that runs a game engine and ends it with the process that started it; it imports no other packages.

    python supervisor.py PIPE FOLDER ENGINE ENGINE_ARGUMENT ...

The engine works in FOLDER, which is its home too: what it prints is in `output`, how it ended in `exit_code`. PIPE is
the number of a file descriptor, whose other end only the asking process has: when that process ends, however it ends,
reading from the pipe does, the engine is killed (it ignores SIGTERM then), and its shared memory is removed. So is the
folder around FOLDER, unless the command that made it lives: it holds the lock `in-use` there, and removes it itself.
The supervisor has a session of its own, so that no signal to the asking process's group ends both at once; if it is
killed by itself, the kernel kills the engine, and the command removes what is left.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where there are no supervisors
    fcntl = None  # type: ignore[assignment]

OUTPUT, EXIT_CODE, INSTANCE, IN_USE = "output", "exit_code", "instance", "in-use"
ORPHANED = "orphaned"  # in place of an exit code: the engine was killed since nobody plays it
SHARED_MEMORY = Path("/dev/shm")
# Although its sound is disabled, the engine starts sound servers, which leave files.
SILENT = {"SDL_AUDIODRIVER": "dummy", "ALSOFT_DRIVERS": "null", "JACK_NO_START_SERVER": "1"}
_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run the engine to its end; returns its exit code as a shell has it."""
    pipe, folder, engine = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    os.setsid()
    working = _lock(folder / IN_USE)  # locked until this process ends
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])  # which workers block
    instance = engine[engine.index("+viz_instance_id") + 1] if "+viz_instance_id" in engine else ""
    (folder / INSTANCE).write_text(instance, encoding="utf-8")
    orphaned = threading.Event()
    with (folder / OUTPUT).open("wb") as output:
        process = subprocess.Popen(
            engine,
            cwd=folder,
            env=os.environ | SILENT | {"HOME": str(folder), "XDG_CONFIG_HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=partial(_die_with, os.getpid()) if sys.platform == "linux" else None,
        )

    def watch() -> None:
        while os.read(pipe, 1):
            pass
        orphaned.set()
        process.kill()

    threading.Thread(target=watch, daemon=True).start()
    code = process.wait()
    remove_shared_memory(instance)
    (folder / EXIT_CODE).write_text(ORPHANED if orphaned.is_set() else str(code), encoding="utf-8")
    if orphaned.is_set() and _lock(folder.parent / IN_USE) is not None:
        shutil.rmtree(folder.parent, ignore_errors=True)
    if working is not None:
        os.close(working)
    return code if code >= 0 else 128 - code


def _lock(file: Path) -> int | None:
    """A descriptor with the lock of a file, or None if another process has it."""
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return None
    return descriptor


def works_in(folder: Path) -> bool:
    """Whether a supervisor works in a folder."""
    if not (folder / IN_USE).exists():
        return False
    descriptor = _lock(folder / IN_USE)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def _die_with(parent: int) -> None:
    """In the engine, before it starts: have the kernel kill it with its parent."""
    import ctypes

    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def remove_shared_memory(instance: str) -> None:
    """Remove what an engine shares with the process that plays it."""
    if instance.isalnum():
        for file in SHARED_MEMORY.glob(f"ViZDoom*{instance}"):
            file.unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
