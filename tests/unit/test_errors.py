"""Errors derive from `TubeletError` and from the standard class that a caller would catch."""

import errno
import os
import pickle
from pathlib import Path

import pytest

import tubelet
from tubelet import errors
from tubelet.config import OptimConfig
from tubelet.errors import DecodeError, FileError, TubeletError
from tubelet.io.files import atomic_write, directory_lock, file_errors
from tubelet.pretrained.load import load
from tubelet.train.signals import InterruptedRunError


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("ConfigError", ValueError),
        ("DataError", ValueError),
        ("CheckpointError", ValueError),
        ("FileError", OSError),
        ("MissingFileError", FileNotFoundError),
        ("MissingPackageError", ImportError),
        ("TrainingError", RuntimeError),
    ],
)
def test_each_kind_derives_from_a_standard_error_and_survives_pickling(name, base):
    kind = getattr(errors, name)
    error = pickle.loads(pickle.dumps(kind("a.mp4: broken\n\x1b[31m")))
    assert isinstance(error, TubeletError) and isinstance(error, base)
    assert str(error) == r"a.mp4: broken\n\x1b[31m" and type(error) is kind and not error.reported


def test_a_decode_error_keeps_its_path_and_reason():
    error = pickle.loads(pickle.dumps(DecodeError("a.mp4", "truncated")))
    assert (error.path, error.reason, str(error)) == ("a.mp4", "truncated", "a.mp4: truncated")


def test_an_interruption_keeps_its_exit_code():
    assert pickle.loads(pickle.dumps(InterruptedRunError("stopped", 15))).exit_code == 143


def test_callers_catch_the_standard_class(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.safetensors: no such file"):
        load(tmp_path / "nothing.safetensors")
    with pytest.raises(ValueError, match="lr"):
        OptimConfig(lr=-1)
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(errors.CheckpointError, match=r"broken\.safetensors: cannot be read"):
        load(tmp_path / "broken.safetensors")


def test_errors_of_the_system_name_the_file_and_a_remedy(tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(FileError, match=r"a\.txt: cannot be written \(the disk is full\); free"), file_errors(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileError, match=r"\(torn\); choose another place"), file_errors(path, also=(RuntimeError,)):
        raise RuntimeError("torn")
    with pytest.raises(KeyError), file_errors(tmp_path / "a.txt"):
        raise KeyError("other errors pass")


def test_an_atomic_write_replaces_all_or_nothing(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_write(path) as partial:
        partial.write_text("first")
        assert not path.exists()
    with pytest.raises(KeyError), atomic_write(path, durable=True) as partial:
        partial.write_text("second")
        raise KeyError
    assert path.read_text() == "first" and [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


def test_a_durable_write_works_where_directories_cannot_be_opened(tmp_path, monkeypatch):
    open_file, flags = os.open, []

    def open_as_windows_does(path, flag, *rest):
        if Path(path).is_dir():
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        flags.append(flag & os.O_ACCMODE)
        return open_file(path, flag, *rest)

    monkeypatch.setattr(os, "open", open_as_windows_does)
    monkeypatch.setattr("tubelet.io.files._WINDOWS", True)
    with atomic_write(tmp_path / "a.txt", durable=True) as partial:
        partial.write_text("kept")
    assert (tmp_path / "a.txt").read_text() == "kept"
    assert os.O_RDWR in flags and os.O_RDONLY not in flags  # which Windows does not flush


def test_a_locked_directory_is_refused(tmp_path):
    run = tmp_path / "run"
    with directory_lock(run), pytest.raises(OSError, match="another process is writing to it"), directory_lock(run):
        pass
    assert not run.exists()  # it was created for the lock and stayed empty


def test_public_names_are_found_and_others_are_not():
    assert tubelet.load is load and tubelet.TubeletError is TubeletError
    assert dir(tubelet) == sorted(tubelet.__all__)
    for name in tubelet.__all__:
        assert getattr(tubelet, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = tubelet.nothing
