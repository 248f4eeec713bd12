"""Overwrite checks: a command may only overwrite files that the same kind of command wrote.

Never an input of the command, under any name; never a file of another command or program; never a path inside a table,
shards, or the checkpoints of a run. Files of this package are recognized by their content.
"""

import os
import stat
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tubelet.errors import FileError, TubeletError
from tubelet.io.arrays import open_safetensors
from tubelet.io.files import file_errors
from tubelet.io.hidden_files import is_hidden
from tubelet.io.text import parse_json, read_json, require_regular

# Marks of this package: in the head of pages, in the zip comment of PyTorch's archives, as the producer of ONNX files.
PAGE_MARK = '<meta name="generator" content="tubelet">'
ARCHIVE_MARK = b"tubelet"
PRODUCER = "tubelet"
VIDEO_MARK = "written by tubelet"
MODEL_MARK = "tubelet_model_id"  # a field of config.json, and of the headers of others' formats
_HEAD_BYTES = 1024
_VIDEO_HEADER_BYTES = 16 * 2**20
_JSON_BYTES = 64 * 2**20
_RUN_DIRECTORIES = ("checkpoints", "tensorboard", "adapter")

Recognizer = Callable[[Path], bool]


def _is_page(path: Path) -> bool:
    """Whether a file is a page of this package."""
    return PAGE_MARK.encode() in _head(path)


def _is_archive(path: Path) -> bool:
    """Whether a .pt or .pt2 file was written by this package."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment == ARCHIVE_MARK
    except (OSError, zipfile.BadZipFile, ValueError):
        return False


def _is_video(path: Path) -> bool:
    """Whether an MP4 was written by this package; its header, which comes first, has a comment that says so."""
    with path.open("rb") as file:
        return VIDEO_MARK.encode() in file.read(_VIDEO_HEADER_BYTES)


def mark_archive(path: Path) -> None:
    """Add this package's mark to an archive of PyTorch, as a zip comment, which readers ignore."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = ARCHIVE_MARK


def _is_onnx(path: Path) -> bool:
    """Whether an ONNX file was written by this package; the producer is one of the first fields."""
    return PRODUCER.encode() in _head(path)[:64]


def _is_encoder(path: Path) -> bool:
    """Whether a .safetensors file is an encoder of this package, not a checkpoint of a run."""
    try:
        with open_safetensors(path) as file:
            return file.header.get("format", "").startswith("tubelet-encoder-")
    except TubeletError:
        return False


def _is_transformers_weights(path: Path) -> bool:
    """Whether a .safetensors file in the layout of another program was written by this package."""
    try:
        with open_safetensors(path) as file:
            return MODEL_MARK in file.header
    except TubeletError:
        return False


def _is_gguf(path: Path) -> bool:
    """Whether a GGUF file was written by this package; the mark is one of its first keys."""
    return MODEL_MARK.encode() in _head(path)


def _is_transformers_config(path: Path) -> bool:
    values = _object(path)
    return values is not None and MODEL_MARK in values


def _is_head(path: Path) -> bool:
    """Whether a .safetensors file is a head of this package."""
    try:
        with open_safetensors(path) as file:
            return file.header.get("format", "").startswith("tubelet-head-")
    except TubeletError:
        return False


def _is_run_config(path: Path) -> bool:
    """Whether a file is the config.json of a run; an empty object counts, since nothing is lost."""
    values = _object(path)
    return values == {} or (values is not None and values.keys() >= {"model", "data", "optim", "steps"})


def _is_hub_config(path: Path) -> bool:
    values = _object(path)
    return values is not None and values.get("library_name") == "tubelet"


def _is_evaluation(path: Path) -> bool:
    values = _object(path)
    return values is not None and values.keys() >= {"checkpoint", "features", "tasks"}


def _is_result(path: Path) -> bool:
    values = _object(path)
    return values is not None and values.keys() >= {"task", "benchmark", "model_id", "metrics"}


def _is_statistics(path: Path) -> bool:
    values = _object(path)
    return values is not None and str(values.get("format", "")).startswith("tubelet-pixel-statistics-")


def _is_table_settings(path: Path) -> bool:
    values = _object(path)
    return values is not None and "format" in values


def _is_shard_index(path: Path) -> bool:
    try:
        require_regular(path)  # opening a pipe would wait for a writer
        with path.open("rb") as file:
            values = parse_json(file.readline(_JSON_BYTES), path)
    except (OSError, TubeletError):
        return False
    return isinstance(values, dict) and (
        "tubelet_shards" in values or values.keys() >= {"recipe", "shard_mb", "sources"}
    )


class OutputKind(NamedTuple):
    """A kind of output of a command.

    Attributes:
        what: description for messages.
        recognizer: for a file, whether an existing one may be replaced; None for a directory.
        suffixes: required suffixes of the file; empty for any.
        files: for a directory, files written into it, and whether an existing one may be replaced.
        marks: files that identify a directory of this kind; without one of them it must be empty except for hidden and
            unfinished files. If empty, the directory may have other files.
    """

    what: str
    recognizer: Recognizer | None = None
    suffixes: tuple[str, ...] = ()
    files: Mapping[str, Recognizer] = {}
    marks: tuple[str, ...] = ()


KINDS: Mapping[str, OutputKind] = {
    "page": OutputKind("a page of this package", _is_page, (".html", ".htm")),
    "video": OutputKind("a video of this package", _is_video, (".mp4",)),
    "released": OutputKind("a model that this package wrote", _is_archive),
    "graph": OutputKind("a graph that this package wrote", _is_archive),
    "onnx": OutputKind("a graph that this package wrote", _is_onnx),
    "head": OutputKind("a head that this package wrote", _is_head, (".safetensors",)),
    "encoder": OutputKind("an encoder that this package wrote", _is_encoder),
    "mlx": OutputKind("an encoder that this package wrote", _is_transformers_weights, (".safetensors",)),
    "gguf": OutputKind("an encoder that this package wrote", _is_gguf, (".gguf",)),
    "evaluation": OutputKind("an evaluation of this package", _is_evaluation),
    "model": OutputKind(
        "a model directory of this package", files={"config.json": _is_hub_config, "model.safetensors": _is_encoder}
    ),
    "transformers": OutputKind(
        "a transformers model that this package wrote",
        files={
            "config.json": _is_transformers_config,
            "model.safetensors": _is_transformers_weights,
            "video_preprocessor_config.json": _is_transformers_config,
        },
    ),
    "statistics": OutputKind("statistics of this package", _is_statistics),
    "results": OutputKind("results of this package", files={"result.json": _is_result, "page.html": _is_page}),
    "run": OutputKind("a run", files={"config.json": _is_run_config}),
    "table": OutputKind("a table", marks=("_settings.json",)),
    "predictions": OutputKind("predictions", marks=("_scores",)),
    "shards": OutputKind("a folder of shards", marks=("index.jsonl", "plan.json")),
    "sample set": OutputKind("a sample set"),
}
_WITH_TENSORS = ("run", "encoder", "model", "transformers", "head")
_RUN_FILES = ("metrics.jsonl", "alerts.jsonl", "alarms.jsonl", "bad_files.jsonl", "sources.txt", "source_sample.json")


def check_output(path: Path, kind: str, inputs: Iterable[object] = ()) -> None:
    """Check that a command may write to a path, before it does anything else.

    Args:
        path: the file or directory to write.
        kind: a key of `KINDS`.
        inputs: inputs of the command; URLs, names and missing paths among them are ignored.

    Raises:
        FileError: names what would be overwritten, and the remedy.
    """
    expected = KINDS[kind]
    if expected.suffixes and path.suffix.lower() not in expected.suffixes:
        raise FileError(f"{path}: expected the suffix {' or '.join(expected.suffixes)}")
    if kind in _WITH_TENSORS and not _is_utf8(path.absolute()):
        raise FileError(f"{path}: not a UTF-8 name, which safetensors requires; choose another name")
    with file_errors(path):
        if expected.marks and path.is_dir():
            _check_marks(path, expected.marks)
        _check_inputs(path, expected, inputs)
        _check_location(path, expected)
        if expected.recognizer is not None:
            _check_file(path, expected.what, expected.recognizer)
        elif _exists(path):
            _check_directory(path, kind, expected)


def check_new_directory(path: Path, marker: str) -> None:
    """Check that a results directory is new, or from an earlier evaluation, which wrote the file `marker` next to it.

    Raises:
        FileError: if its contents are of something else.
    """
    if _exists(path) and not _is_result(path.parent / marker):
        raise FileError(
            f"{path}: exists, but not from an earlier evaluation (no {marker} next to it); choose another --out"
        )


def _check_inputs(path: Path, kind: OutputKind, inputs: Iterable[object]) -> None:
    written = [path, *(path / name for name in kind.files)]
    for item in inputs:
        if not item or "://" in str(item):
            continue
        source = Path(str(item)).expanduser()
        for target in written:
            if _same(source, target):
                what = "folder" if target.is_dir() else "file"
                raise FileError(
                    f"{target}: this {what} is one of the inputs and would be overwritten; choose another place"
                )


def _same(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)  # follows links; hard links are the same file too
    except (OSError, ValueError):
        return False


def _check_location(path: Path, kind: OutputKind) -> None:
    """Reject paths inside a table, shards, or a subdirectory of a run."""
    resolved = Path(os.path.realpath(path))
    inner = resolved
    for folder in resolved.parents:
        other = None
        if _is_table_settings(folder / "_settings.json"):
            other = "a table of features"
        elif _is_shard_index(folder / "index.jsonl") or _is_shard_index(folder / "plan.json"):
            other = "a folder of shards"
        elif (
            inner.name in _RUN_DIRECTORIES
            and (folder / "config.json").is_file()
            and _is_run_config(folder / "config.json")
        ):
            other = f"the {inner.name} of a run"
        if other:
            raise FileError(
                f"{path}: is inside {other} ({folder}), which must not contain {kind.what}; choose another place"
            )
        inner = folder


def _check_file(path: Path, what: str, recognizer: Recognizer) -> None:
    if not _exists(path):
        return
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise FileError(f"{path}: is a dangling link; remove it or choose another name") from error
    if stat.S_ISDIR(status.st_mode):
        raise FileError(f"{path}: is a directory, expected a file or a new name")
    if not stat.S_ISREG(status.st_mode):
        raise FileError(f"{path}: is not a regular file; choose another name")
    if status.st_size and not recognizer(path):
        raise FileError(f"{path}: exists and is not {what}; choose another name, or remove it first")


def _check_directory(path: Path, kind: str, expected: OutputKind) -> None:
    if not path.is_dir():
        what = "a file" if path.exists() else "a dangling link"
        raise FileError(f"{path}: is {what}, expected a directory or a new name")
    for name, recognizer in expected.files.items():
        _check_file(path / name, f"of {expected.what}", recognizer)
    if kind == "run" and not (path / "config.json").exists():
        existing = [name for name in _RUN_FILES if _exists(path / name)]
        if existing and not (path / "checkpoints").is_dir():
            raise FileError(f"{path / existing[0]}: exists, but not from a run (no config.json); choose another place")


def _check_marks(path: Path, marks: Iterable[str]) -> None:
    """Reject a directory with files that are neither hidden nor unfinished, but none of the marks."""
    names = {entry.name for entry in path.iterdir()}
    if names.isdisjoint(marks) and any(not is_hidden(name) and not name.endswith(".partial") for name in names):
        raise FileError(f"{path}: contains other files; choose another --out")


def _exists(path: Path) -> bool:
    return os.path.lexists(path)


def _is_utf8(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _head(path: Path) -> bytes:
    try:
        require_regular(path)
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except (OSError, TubeletError):
        return b""


def _object(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file; None for any other content."""
    try:
        if not path.is_file() or path.stat().st_size > _JSON_BYTES:
            return None
        values = read_json(path)
    except (OSError, TubeletError):
        return None
    return values if isinstance(values, dict) else None
