"""Atomic writes, directory locks, temporary directories, and the user's cache directory."""

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from tubelet.errors import ConfigError, FileError, TubeletError, first_line
from tubelet.user_warnings import warn_user

try:
    import fcntl
except ImportError:  # Windows, where stale directories are not removed
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
_WINDOWS = os.name == "nt"
_IN_USE = "in-use"
_ELSEWHERE = "choose another place"
_COMPILE_CACHE = "TORCHINDUCTOR_CACHE_DIR"
_LINKING_S = 5.0  # for so long an empty library may be one that another process is writing
_Result = TypeVar("_Result")


@contextmanager
def file_errors(path: Path, remedy: str = _ELSEWHERE, also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn errors of the operating system in the block into a `FileError`: "PATH: cannot be written (REASON); REMEDY".

    Args:
        path: the file or directory that the block writes.
        remedy: what to do; a full disk has a remedy of its own.
        also: further classes of errors, such as those of the library that writes.

    Raises:
        FileError: see above. Errors of this package pass unchanged.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, TubeletError) or not isinstance(error, (OSError, *also)):
            raise
        reason = getattr(error, "strerror", None) or first_line(error)
        if _is_disk_full(error):
            reason, remedy = "the disk is full", "free some space"
        raise FileError(f"{path}: cannot be written ({reason}); {remedy}") from error


@contextmanager
def atomic_write(
    path: Path, *, durable: bool = False, remedy: str = _ELSEWHERE, also: tuple[type[Exception], ...] = ()
) -> Iterator[Path]:
    """A temporary file next to `path` that replaces it at the end of the block; if the block fails, it is removed.

    Args:
        path: the file to write; its directory is made. Readers see the previous file or all of the new one.
        durable: wait until the disk has the contents, so that not even a power cut leaves an empty file.
        remedy: the end of the message if the file cannot be written.
        also: further classes of errors that mean so, see `file_errors`.

    Yields:
        The temporary file, empty.

    Raises:
        FileError: if the file cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with file_errors(path, remedy, also):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.touch()
            mode = partial.stat().st_mode  # follows the umask; safetensors writes for the owner only
            yield partial
            partial.chmod(mode)
            if durable:
                fsync(partial)
            partial.replace(path)
            if durable:
                fsync(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextmanager
def directory_lock(folder: Path, name: str = LOCK, remedy: str = "choose another --out") -> Iterator[None]:
    """Create a directory and lock it against other processes; the operating system releases the lock of a dead process.

    Acquire the lock before reading anything in the directory: until then it may change.

    Args:
        folder: the directory; if it was created here and is still empty at the end, it is removed.
        name: name of the lock file, which stays: removing it would let two processes lock different files.
        remedy: what to do other than wait, for the message.

    Raises:
        FileError: if the directory cannot be created, or is locked by another process.
    """
    created = not folder.exists()
    lock = FileLock(folder / name, timeout=0)
    try:
        with file_errors(folder, remedy):
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(Timeout):
                lock.acquire()
    except NotImplementedError:  # some network file systems
        warn_user(f"{folder}: filesystem does not support locking; make sure no other process writes here")
    else:
        if not lock.is_locked:
            raise FileError(f"{folder}: another process is writing to it; wait for it, or {remedy}")
    try:
        yield
    finally:
        with suppress(OSError):
            if created and {entry.name for entry in folder.iterdir()} <= {name}:
                (folder / name).unlink(missing_ok=True)
                folder.rmdir()
        lock.release()


def write_directory_once(folder: Path, write: Callable[[Path], _Result], remedy: str) -> _Result | None:
    """Write a directory under another name and rename it when it is complete; an existing one is left as it is.

    Args:
        folder: the directory.
        write: writes the content into an empty directory.
        remedy: what to do if it cannot be written, for the message.

    Returns:
        What `write` returned; None if the directory existed.

    Raises:
        FileError: if it cannot be written.
    """
    if folder.exists():
        return None
    partial = folder.with_name(f"{folder.name}.partial")
    with directory_lock(folder.parent, f".{folder.name}.lock", remedy):
        if folder.exists():  # written since the check above
            return None
        with file_errors(folder, remedy):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            result = write(partial)
            partial.rename(folder)
    return result


@contextmanager
def temporary_directory(kind: str, sweep: Callable[[Path], None] = lambda folder: None) -> Iterator[tuple[Path, int]]:
    """A temporary directory that is cleaned up even after SIGKILL, by the next process that uses the same kind.

    Stale directories are those whose processes are all dead, which is known by a lock that child processes inherit.

    Args:
        kind: purpose, a part of the name.
        sweep: called with each stale directory before it is removed.

    Yields:
        The directory, and the lock's descriptor for child processes to inherit (-1 where there is none).
    """
    prefix = f"tubelet-{kind}-"
    _remove_stale(Path(tempfile.gettempdir()), prefix, sweep)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix))
        lock = _try_lock(folder)
        if lock is not None:
            break
    try:
        yield folder, lock
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock >= 0:
            os.close(lock)


def _try_lock(folder: Path) -> int | None:
    """Lock a directory; returns the descriptor, or None if it is in use or was just removed."""
    if fcntl is None:
        return -1
    try:
        lock = os.open(folder / _IN_USE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_nlink:
            return lock
    except OSError as error:
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            return lock  # a file system without locks: stale directories stay
    os.close(lock)
    return None


def _remove_stale(parent: Path, prefix: str, sweep: Callable[[Path], None]) -> None:
    if fcntl is None:
        return
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError):
            status = folder.lstat()
            if status.st_uid != os.getuid() or folder.is_symlink() or (lock := _try_lock(folder)) is None:
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                sweep(folder)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)


def fsync(path: Path) -> None:
    """Wait until the contents of a file or directory are on the disk; Windows opens files only, and syncs no others."""
    is_directory = path.is_dir()
    if is_directory and _WINDOWS:
        return
    descriptor = os.open(path, os.O_RDONLY if is_directory else os.O_RDWR)  # Windows flushes only what may be written
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe_os_error(error: Exception) -> str:
    """The message of an error, with a remedy if the disk is full."""
    return "the disk is full: free some space" if _is_disk_full(error) else str(error)


def _is_disk_full(error: Exception) -> bool:
    return getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)


CACHE_VARIABLE = "TUBELET_CACHE"


def cache_dir() -> Path:
    """The package's cache: TUBELET_CACHE, or `tubelet` in the cache directory of the XDG base directory specification.

    Raises:
        ConfigError: if no home directory is known, as in a container whose user has neither an entry nor HOME.
    """
    try:
        if chosen := os.environ.get(CACHE_VARIABLE):
            return Path(chosen).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tubelet"
    except RuntimeError as error:
        raise ConfigError(
            f"no home directory is known; set HOME or {CACHE_VARIABLE} to a directory for downloads and features"
        ) from error


def set_compile_cache() -> None:
    """Make PyTorch keep compiled graphs in the user's cache directory rather than in a temporary one.

    PyTorch reads the directory from the environment, or else creates a temporary one and sets it there when the
    compiler is imported, which building a model does. That one is replaced; one that the user set is not. If the cache
    directory is not writable, PyTorch's choice remains.
    """
    chosen = os.environ.get(_COMPILE_CACHE)
    if chosen and Path(chosen).parent != Path(tempfile.gettempdir()):
        return
    try:
        folder = cache_dir().absolute() / "compiled"
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
    except (OSError, TubeletError):
        return
    if existing.is_dir() and os.access(existing, os.W_OK):
        os.environ[_COMPILE_CACHE] = str(folder)


def remove_incomplete_libraries() -> None:
    """Remove empty libraries left by a killed compiler, which would be taken for complete ones."""
    for library in Path(os.environ[_COMPILE_CACHE]).rglob("*.so") if os.environ.get(_COMPILE_CACHE) else ():
        status = library.stat()
        if status.st_size == 0 and time.time() - status.st_mtime > _LINKING_S:
            library.unlink(missing_ok=True)
