"""Files that are written whole or not at all, and where the user's cache lies."""

import errno
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tubelet.types import TubeletError

_MASK = os.umask(0o022)  # there is no way to read it but to set it
os.umask(_MASK)


@contextmanager
def replacing(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A file beside `path` to write to, which takes its place at the end of the block; if that fails, it is removed.

    Args:
        path: where the file is to be. Readers see the one that was there before, or all of the new one.
        durable: have the disk confirm the contents first, so that not even a power cut leaves an empty file.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        if partial.is_file():
            partial.chmod(0o666 & ~_MASK)  # safetensors writes for its owner alone
        if durable:
            sync(partial)
        partial.replace(path)
        if durable:
            sync(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def alone(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Make a folder and be the only process that writes to it; the lock is the system's, and dies with its process.

    Raises:
        TubeletError: if the folder cannot be made, or another process is at work in it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TubeletError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
    lock = FileLock(folder / name, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise TubeletError(
            f"{folder}: another process is writing to it; wait for it, or choose another --out"
        ) from error
    except OSError as error:
        raise TubeletError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
    except NotImplementedError:  # some network folders
        warnings.warn(
            f"{folder}: its file system knows no locks: see to it that no other process writes there", stacklevel=3
        )
    try:
        yield
    finally:
        lock.release()


def sync(path: Path) -> None:
    """Ask the system to have a file's (or folder's) bytes on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_os_error(error: Exception) -> str:
    """What went wrong with a file, and what to do where that is known."""
    if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
        return "the disk is full: free some space"
    return str(error)


def cache_folder() -> Path:
    """The user's folder for what can be made or fetched again (the XDG base directory specification).

    Raises:
        TubeletError: no home directory is known, as in a container whose user has no entry and no HOME.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError as error:
        raise TubeletError(
            "no home directory is known: set HOME or XDG_CACHE_HOME to a folder for downloads and features"
        ) from error
