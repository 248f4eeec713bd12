"""Resolution of model names to local files: paths, released names, and repositories of the Hugging Face Hub."""

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

from tubelet.checkpoint.run import resolve_best
from tubelet.errors import CheckpointError, ConfigError, MissingFileError, first_line
from tubelet.io.files import cache_dir

RELEASE_URL = "https://dl.fbaipublicfiles.com/vjepa2/"
RELEASED = {
    "vjepa2.1-vitb16-384": "vjepa2_1_vitb_dist_vitG_384.pt",
    "vjepa2.1-vitl16-384": "vjepa2_1_vitl_dist_vitG_384.pt",
    "vjepa2.1-vitg16-384": "vjepa2_1_vitg_384.pt",
    "vjepa2.1-vitG16-384": "vjepa2_1_vitG_384.pt",
    "vjepa2-vitl16-256": "vitl.pt",
    "vjepa2-vith16-256": "vith.pt",
    "vjepa2-vitg16-256": "vitg.pt",
    "vjepa2-vitg16-384": "vitg-384.pt",
}
# The names of the same models in the release's torch.hub entry points.
HUB_NAMES = {
    "vjepa2_1_vit_base_384": "vjepa2.1-vitb16-384",
    "vjepa2_1_vit_large_384": "vjepa2.1-vitl16-384",
    "vjepa2_1_vit_giant_384": "vjepa2.1-vitg16-384",
    "vjepa2_1_vit_gigantic_384": "vjepa2.1-vitG16-384",
    "vjepa2_vit_large": "vjepa2-vitl16-256",
    "vjepa2_vit_huge": "vjepa2-vith16-256",
    "vjepa2_vit_giant": "vjepa2-vitg16-256",
    "vjepa2_vit_giant_384": "vjepa2-vitg16-384",
}
# Options that are passed to `huggingface_hub`.
HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HEADS_FOLDER = "heads"
"""Folder of a Hub repository with the heads that were fitted on its encoder."""
_HUB_HEAD = re.compile(rf"({_HUB_ID.pattern})/({HEADS_FOLDER}/[\w.-]+\.safetensors)")


def released_name(name_or_path: str | Path) -> str | None:
    """The released model of this name, torch.hub's name or file name; None for anything else."""
    name = str(name_or_path)
    files = {file: released for released, file in RELEASED.items()}
    return name if name in RELEASED else HUB_NAMES.get(name) or files.get(name)


def resolve_checkpoint(name_or_path: str | Path, sha256: str | None = None, **hub: Any) -> Path:
    """The local file or directory that `name_or_path` names, downloaded if necessary.

    Args:
        name_or_path: a path, RUN/best for the best checkpoint of a run, a released name as in `released_name`, or a Hub
            id (owner/name).
        sha256: expected hash of the file, in hexadecimal; None only checks the size after a download.
        hub: `HUB_OPTIONS` of `huggingface_hub`.

    Raises:
        MissingFileError: if it does not exist here and cannot be downloaded.
        CheckpointError: if the hash differs.
    """
    require_name(name_or_path, "a run directory, a file, a released name or a Hub id")
    path = resolve_best(Path(name_or_path).expanduser())
    if path.exists():
        resolved = path
    elif released := released_name(name_or_path):
        resolved = _released(released, local_only=bool(hub.get("local_files_only")))
    elif _HUB_ID.fullmatch(str(name_or_path)) and path.suffix not in (".pt", ".safetensors"):
        if path.parent.is_dir():
            raise MissingFileError(
                f"{name_or_path}: no such file or directory; not looked up on the Hub, since {path.parent} exists here"
            )
        return _from_hub(str(name_or_path), **hub)
    else:
        close = get_close_matches(str(name_or_path), [*RELEASED, *HUB_NAMES], n=1)
        raise MissingFileError(
            f"{name_or_path}: no such file or directory{f' (nearest released name: {close[0]!r})' if close else ''}; "
            "expected a run directory, a .safetensors, .pt or .gguf file, a Hub id (owner/name), or one of "
            f"{', '.join(RELEASED)}"
        )
    if sha256 is not None:
        _check_hash(resolved, sha256)
    return resolved


def require_name(what: Any, expected: str) -> None:
    """Refuse what is not the name or path of something to be loaded.

    Raises:
        ConfigError: it is of another type, or empty.
    """
    if not isinstance(what, (str, Path)) or not str(what):
        found = "an empty name" if isinstance(what, str) else f"an object of type {type(what).__name__}"
        raise ConfigError(f"cannot load {found}, expected {expected}")


def resolve_head(name_or_path: str | Path, **hub: Any) -> Path:
    """The local head file that `name_or_path` names, downloaded if necessary.

    Args:
        name_or_path: a path, or a head on the Hub: owner/name/heads/HEAD.safetensors.
        hub: `HUB_OPTIONS` of `huggingface_hub`.

    Raises:
        MissingFileError: if it is on the Hub by its name, and cannot be downloaded.
    """
    path = Path(name_or_path).expanduser()
    named = _HUB_HEAD.fullmatch(str(name_or_path))
    if path.exists() or named is None or path.parent.is_dir():
        return path
    from huggingface_hub import hf_hub_download

    try:
        with _one_error():
            return Path(hf_hub_download(named[1], named[2], **hub))
    except Exception as error:  # network, repository, permissions: several classes, which change with the version
        raise MissingFileError(
            f"{name_or_path}: no such file, and the Hub has no head of this name ({first_line(error)}); check the "
            "name, the network and HF_TOKEN"
        ) from error


def search_directories() -> list[Path]:
    """Directories searched for released files; downloads go to the first."""
    users = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    torch_home = Path(os.environ.get("TORCH_HOME") or users / "torch").expanduser()
    return [cache_dir() / "released", torch_home / "hub" / "checkpoints", Path.cwd()]


def download(url: str, target: Path) -> None:
    """Download a file with a progress bar; an interrupted download is resumed.

    The file gets its name only when it has the size that the server reports. Of several processes, one downloads it and
    the others wait.

    Raises:
        OSError: if the server cannot be reached or the download ends early; the received part is kept to be resumed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    with FileLock(target.with_name(target.name + ".lock")):
        if target.is_file():  # another process has downloaded it
            return
        try:
            with partial.open("ab") as file:
                _fetch(url, file, target.name)
        except Exception as error:  # the HTTP library of huggingface_hub changes with its version
            if not partial.stat().st_size:
                partial.unlink()
            raise OSError(first_line(error)) from error
        partial.replace(target)


def _fetch(url: str, file: BinaryIO, name: str) -> None:
    """Append the missing part of a URL's content to a file."""
    from huggingface_hub.file_download import http_get

    begin = file.tell()
    try:
        with _one_error():
            http_get(url, file, resume_size=begin, displayed_filename=name)
    except Exception as error:
        response: Any = getattr(error, "response", None)
        if response is None or response.status_code != 416:
            raise
        # No more bytes on the server: the file is complete and was not renamed yet, or is something else.
        if response.headers.get("Content-Range") != f"bytes */{begin}":
            file.truncate(0)
            http_get(url, file, displayed_filename=name)


@contextmanager
def _one_error() -> Iterator[None]:
    """Leave out what `huggingface_hub` logs of each attempt: the last one raises an error."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _released(name: str, local_only: bool) -> Path:
    file = RELEASED[name]
    searched = search_directories()
    for folder in searched:
        if (folder / file).is_file():
            return folder / file
    target = searched[0] / file
    problem = "downloads are disabled"
    if not local_only and os.environ.get("HF_HUB_OFFLINE", "0").upper() not in ("1", "ON", "YES", "TRUE"):
        try:
            download(RELEASE_URL + file, target)
            return target
        except OSError as error:
            problem = f"it could not be downloaded: {error}"
    raise MissingFileError(
        f"{name} is the file {file}, which is in none of {', '.join(map(str, searched))}, and {problem}; download "
        f"{RELEASE_URL}{file} to the first of these directories, or pass its path"
    )


def _from_hub(repository: str, **hub: Any) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # Weights and config only: no pickles, no code.
        patterns, heads = ["config.json", "*.safetensors"], [f"{HEADS_FOLDER}/*"]
        with _one_error():
            return Path(snapshot_download(repository, allow_patterns=patterns, ignore_patterns=heads, **hub))
    except Exception as error:  # network, repository, permissions: several classes, which change with the version
        raise MissingFileError(
            f"{repository}: no such file or directory, and the Hub has no model of this name ({first_line(error)}); "
            "check the name, the network and HF_TOKEN"
        ) from error


def _check_hash(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise ConfigError(f"{path}: sha256 only applies to a file, and this is a directory")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256.lower():
        raise CheckpointError(f"{path}: sha256 is {digest}, expected {sha256}; delete the file and download it again")
