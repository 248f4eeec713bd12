"""What a command may write over: what the same kind of command wrote, and nothing else.

Never an input of the command, under whatever name; never a file of another command or of another program; never
anything among the files of a table, of shards, or of a run's checkpoints. What this package wrote is known by its
content.
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
from tubelet.io.hidden import is_hidden
from tubelet.io.text import parse_json, read_json, require_regular

# What files say of themselves: pages in their head, archives of PyTorch in a comment, ONNX files as their producer.
PAGE_MARK = '<meta name="generator" content="tubelet">'
ARCHIVE_MARK = b"tubelet"
PRODUCER = "tubelet"
_HEAD_BYTES = 1024
_JSON_BYTES = 64 * 2**20
_RUN_PARTS = ("checkpoints", "tensorboard", "adapter")

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


def mark_archive(path: Path) -> None:
    """Leave this package's mark in an archive that PyTorch wrote; its readers do not look at comments."""
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = ARCHIVE_MARK


def _is_onnx(path: Path) -> bool:
    """Whether an ONNX file was written by this package: the producer is among a model's first fields."""
    return PRODUCER.encode() in _head(path)[:64]


def _is_encoder(path: Path) -> bool:
    """Whether a .safetensors file is an encoder of this package, and no checkpoint of a run."""
    try:
        with open_safetensors(path) as file:
            return file.header.get("format", "").startswith("tubelet-encoder-")
    except TubeletError:
        return False


def _is_run_config(path: Path) -> bool:
    """Whether a file is a run's config.json; an empty object counts, nothing is lost with it."""
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


def _is_table_settings(path: Path) -> bool:
    values = _object(path)
    return values is not None and "format" in values


def _is_shard_index(path: Path) -> bool:
    try:
        require_regular(path)  # to open a pipe is to wait for who writes into it
        with path.open("rb") as file:
            values = parse_json(file.readline(_JSON_BYTES), path)
    except (OSError, TubeletError):
        return False
    return isinstance(values, dict) and (
        "tubelet_shards" in values or values.keys() >= {"recipe", "shard_mb", "sources"}
    )


class OutputKind(NamedTuple):
    """What a command writes.

    Attributes:
        what: in words.
        own: for a file, whether it may be replaced; None for a folder.
        suffixes: that the file must have; empty for any.
        files: for a folder, the files that are written into it, and whether one that is there may be replaced.
        marks: files by which a folder of this kind is known; without one of them it must be empty, but for hidden and
            unfinished files. Where there are none it may hold others.
    """

    what: str
    own: Recognizer | None = None
    suffixes: tuple[str, ...] = ()
    files: Mapping[str, Recognizer] = {}
    marks: tuple[str, ...] = ()


KINDS: Mapping[str, OutputKind] = {
    "page": OutputKind("a page of this package", _is_page, (".html", ".htm")),
    "released": OutputKind("a model that this package wrote", _is_archive),
    "graph": OutputKind("a graph that this package wrote", _is_archive),
    "onnx": OutputKind("a graph that this package wrote", _is_onnx),
    "encoder": OutputKind("an encoder that this package wrote", _is_encoder),
    "evaluation": OutputKind("an evaluation of this package", _is_evaluation),
    "model": OutputKind(
        "a model's folder of this package", files={"config.json": _is_hub_config, "model.safetensors": _is_encoder}
    ),
    "results": OutputKind("results of this package", files={"result.json": _is_result, "page.html": _is_page}),
    "run": OutputKind("a run", files={"config.json": _is_run_config}),
    "table": OutputKind("a table", marks=("_settings.json",)),
    "shards": OutputKind("a folder of shards", marks=("index.jsonl", "plan.json")),
    "sample set": OutputKind("a sample set"),
}
_OF_TENSORS = ("run", "encoder", "model")
_RUN_FILES = ("metrics.jsonl", "alerts.jsonl", "alarms.jsonl", "bad_files.jsonl", "sources.txt")


def check_output(path: Path, kind: str, inputs: Iterable[object] = ()) -> None:
    """See that a command may write to a place, before it does anything else.

    Args:
        path: the file or folder that is written.
        kind: one of `KINDS`.
        inputs: what the command reads: paths, of which those that are not there, URLs and names are passed over.

    Raises:
        TubeletError: names what would be overwritten, and what to do.
    """
    expected = KINDS[kind]
    if expected.suffixes and path.suffix.lower() not in expected.suffixes:
        raise FileError(f"{path}: expected a name that ends in {' or '.join(expected.suffixes)}")
    if kind in _OF_TENSORS and not _is_utf8(path.absolute()):
        raise FileError(f"{path}: not a name in UTF-8, which safetensors needs to read a file; choose another name")
    with file_errors(path):
        if expected.marks and path.is_dir():
            _refuse_unmarked_folder(path, expected.marks)
        _refuse_inputs(path, expected, inputs)
        _refuse_other_places(path, expected)
        if expected.own is not None:
            _refuse_foreign_file(path, expected.what, expected.own)
        elif _exists(path):
            _refuse_foreign_folder(path, kind, expected)


def check_new_directory(path: Path, beside: str) -> None:
    """See that a folder of results is new, or was left by an earlier evaluation, whose `beside` lies next to it.

    Raises:
        TubeletError: if its contents are somebody else's.
    """
    if _exists(path) and not _is_result(path.parent / beside):
        raise FileError(
            f"{path}: is in the way, and not of an earlier evaluation (no {beside} beside it); choose another --out"
        )


def _refuse_inputs(path: Path, kind: OutputKind, inputs: Iterable[object]) -> None:
    written = [path, *(path / name for name in kind.files)]
    for given in inputs:
        if not given or "://" in str(given):
            continue
        source = Path(str(given)).expanduser()
        for target in written:
            if _same(source, target):
                what = "folder" if target.is_dir() else "file"
                raise FileError(
                    f"{target}: this {what} is one of the sources, and the source itself would be overwritten; choose "
                    "another place"
                )


def _same(a: Path, b: Path) -> bool:
    try:
        return a.samefile(b)  # follows links; hard links are the same file too
    except (OSError, ValueError):
        return False


def _refuse_other_places(path: Path, kind: OutputKind) -> None:
    """Refuse places among the files of a table, of shards, or of a run's parts."""
    place = Path(os.path.realpath(path))
    inner = place
    for folder in place.parents:
        other = None
        if _is_table_settings(folder / "_settings.json"):
            other = "a table of features"
        elif _is_shard_index(folder / "index.jsonl") or _is_shard_index(folder / "plan.json"):
            other = "a folder of shards"
        elif inner.name in _RUN_PARTS and (folder / "config.json").is_file() and _is_run_config(folder / "config.json"):
            other = f"the {inner.name} of a run"
        if other:
            raise FileError(
                f"{path}: lies in {other} ({folder}), where {kind.what} does not belong; choose another place"
            )
        inner = folder


def _refuse_foreign_file(path: Path, what: str, own: Recognizer) -> None:
    if not _exists(path):
        return
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise FileError(f"{path}: is a link to a file that is not there; remove it, or choose another name") from error
    if stat.S_ISDIR(status.st_mode):
        raise FileError(f"{path}: is a folder, expected a file or a new name")
    if not stat.S_ISREG(status.st_mode):
        raise FileError(f"{path}: is no regular file; choose another name")
    if status.st_size and not own(path):
        raise FileError(f"{path}: is a file already, and not {what}; choose another name, or remove it first")


def _refuse_foreign_folder(path: Path, kind: str, expected: OutputKind) -> None:
    if not path.is_dir():
        what = "a file" if path.exists() else "a link to nothing"
        raise FileError(f"{path}: cannot be written, it is {what}, expected a folder or a new name")
    for name, own in expected.files.items():
        _refuse_foreign_file(path / name, f"of {expected.what}", own)
    if kind == "run" and not (path / "config.json").exists():
        there = [name for name in _RUN_FILES if _exists(path / name)]
        if there and not (path / "checkpoints").is_dir():
            raise FileError(
                f"{path / there[0]}: is there already, and not of a run (no config.json is there); choose another place"
            )


def _refuse_unmarked_folder(path: Path, marks: Iterable[str]) -> None:
    """Refuse a folder that holds anything but hidden and unfinished files, and none of the marks."""
    names = {entry.name for entry in path.iterdir()}
    if names.isdisjoint(marks) and any(not is_hidden(name) and not name.endswith(".partial") for name in names):
        raise FileError(f"{path}: holds something else; choose another --out")


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
    """A JSON object in a file; None if it is something else."""
    try:
        if not path.is_file() or path.stat().st_size > _JSON_BYTES:
            return None
        values = read_json(path)
    except (OSError, TubeletError):
        return None
    return values if isinstance(values, dict) else None
