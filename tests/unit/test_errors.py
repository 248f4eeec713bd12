"""Errors derive from `TubeletError` and from the standard class that a caller would catch."""

import errno
import os
import pickle
from pathlib import Path

import pytest
from huggingface_hub import file_download

import tubelet
from tests.helpers.commands import run_tubelet
from tubelet import errors
from tubelet.checkpoint import registry
from tubelet.cli import COMMANDS
from tubelet.config import OptimConfig
from tubelet.data.bad_files import describe_failed_fraction
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


@pytest.mark.parametrize(
    ("bad", "total", "limit", "found", "allowed"),
    [(2, 38, 0.05, "5.3 %", "5.0 %"), (3, 10, 0.05, "30 %", "5 %"), (1, 5000, 0.0, "0.02 %", "0.00 %")],
)
def test_a_fraction_of_bad_files_is_told_apart_from_the_limit(bad, total, limit, found, allowed):
    text = describe_failed_fraction(bad, total, limit)
    assert f"files ({found}) cannot be read, more than the {allowed} that" in text


def test_public_names_are_found_and_others_are_not():
    assert tubelet.load is load and tubelet.TubeletError is TubeletError
    assert dir(tubelet) == sorted(tubelet.__all__)
    for name in tubelet.__all__:
        assert getattr(tubelet, name) is not None
    with pytest.raises(AttributeError, match="nothing"):
        _ = tubelet.nothing


@pytest.mark.parametrize(
    "line",
    [
        "search . none.mp4",
        "search none a.mp4",
        "search . a man",
        "embed none --model x --out o",
        "view none --model x",
        "map none",
        "map . --labels none",
        "explain none",
        "stats none --out o",
        "shard none --out o",
        "fit none --model x --out o",
        "predict head.safetensors none --out o",
        "predict none.safetensors . --out o",
        "evaluate x --data none",
        "evaluate head.safetensors --labels none",
        "report none",
        "train none --out o",
        "cooldown none --out o",
    ],
)
def test_a_missing_path_is_reported_before_anything_is_loaded(line, tmp_path, monkeypatch):
    name, *words = line.replace("a man", "a_man").split()
    words = [word.replace("_", " ") for word in words]
    for file in ("a.mp4", "head.safetensors"):
        (tmp_path / file).touch()
    monkeypatch.setattr(COMMANDS[name], "run", lambda self: pytest.fail("was run"))
    done = run_tubelet(name, *words, cwd=tmp_path)
    assert done.returncode == 1 and ": no such file" in done.stderr, done.stderr


def test_a_download_without_a_network_is_one_error(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TUBELET_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(registry, "RELEASE_URL", "http://127.0.0.1:9/")
    monkeypatch.setattr(file_download.time, "sleep", lambda seconds: None)
    with pytest.raises(TubeletError, match=r"could not be downloaded: .*refused"):
        load("vjepa2.1-vitb16-384")
    assert not caplog.records and not list(tmp_path.rglob("*.partial"))
