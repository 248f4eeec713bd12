"""From a name to a file on this machine: paths, released names, and repositories of the Hugging Face Hub."""

import hashlib
import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock

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
# What `huggingface_hub` is asked for a repository.
HUB_OPTIONS = ("revision", "token", "cache_dir", "force_download", "local_files_only")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


def resolve_checkpoint(what: str | Path, sha256: str | None = None, **hub: Any) -> Path:
    """The local file or folder that `what` names; what is not there yet is downloaded.

    Args:
        what: a path, a released name, or a Hub id (owner/name).
        sha256: what a file must have, in hexadecimal; None checks its size alone, and only when it is downloaded.
        hub: `HUB_OPTIONS` of `huggingface_hub`.

    Raises:
        TubeletError: if there is no such thing here, and it cannot be fetched.
    """
    path = Path(what).expanduser()
    if path.exists():
        found = path
    elif str(what) in RELEASED:
        found = _released(str(what), local_only=bool(hub.get("local_files_only")))
    elif _HUB_ID.fullmatch(str(what)) and path.suffix not in (".pt", ".safetensors"):
        if path.parent.is_dir():
            raise MissingFileError(
                f"{what}: no such file or folder; it is not looked for on the Hub, since {path.parent} is a folder here"
            )
        return _from_hub(str(what), **hub)
    else:
        close = get_close_matches(str(what), RELEASED, n=1)
        raise MissingFileError(
            f"{what}: no such file or folder{f' (nearest released name: {close[0]!r})' if close else ''}; expected a "
            f"run folder, a .safetensors or .pt file, a Hub id (owner/name), or one of {', '.join(RELEASED)}"
        )
    if sha256 is not None:
        _check_hash(found, sha256)
    return found


def search_directories() -> list[Path]:
    """Where released files are looked for; the first is where they are downloaded to."""
    cache = cache_dir()
    torch_home = Path(os.environ.get("TORCH_HOME") or cache / "torch").expanduser()
    return [cache / "tubelet" / "released", torch_home / "hub" / "checkpoints", Path.cwd()]


def download(url: str, target: Path) -> None:
    """Fetch a file with a progress bar; a download that was broken off goes on where it ended.

    The file appears under its name only when it has the size that the server says. Of several processes that want it
    one fetches it, and the others wait.

    Raises:
        OSError: if it cannot be reached or ends early; what came is kept for the next attempt.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    with FileLock(target.with_name(target.name + ".lock")):
        if target.is_file():  # another process was faster
            return
        with partial.open("ab") as file:
            try:
                _fetch(url, file, target.name)
            except Exception as error:  # whatever its HTTP library of the day raises
                raise OSError(first_line(error)) from error
        partial.replace(target)


def _fetch(url: str, file: BinaryIO, name: str) -> None:
    """Append to a file what it lacks of what is at a URL."""
    from huggingface_hub.file_download import http_get

    begin = file.tell()
    try:
        http_get(url, file, resume_size=begin, displayed_filename=name)
    except Exception as error:
        response: Any = getattr(error, "response", None)
        if response is None or response.status_code != 416:
            raise
        # There is nothing behind what is here: it is whole and was not renamed in time, or it is something else.
        if response.headers.get("Content-Range") != f"bytes */{begin}":
            file.truncate(0)
            http_get(url, file, displayed_filename=name)


def _released(name: str, local_only: bool) -> Path:
    file = RELEASED[name]
    looked = search_directories()
    for folder in looked:
        if (folder / file).is_file():
            return folder / file
    target = looked[0] / file
    problem = "downloads are switched off"
    if not local_only and os.environ.get("HF_HUB_OFFLINE", "0").upper() not in ("1", "ON", "YES", "TRUE"):
        try:
            download(RELEASE_URL + file, target)
            return target
        except OSError as error:
            problem = f"it could not be downloaded: {error}"
    raise MissingFileError(
        f"{name} is the file {file}, which is in none of {', '.join(map(str, looked))}, and {problem}; get it from "
        f"{RELEASE_URL}{file} and put it into the first of these folders, or give its path"
    )


def _from_hub(repository: str, **hub: Any) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # Everything that is needed and nothing that could run: no pickles, no code.
        return Path(snapshot_download(repository, allow_patterns=["config.json", "*.safetensors"], **hub))
    except Exception as error:  # network, repository, permissions: each has several classes, which change
        raise MissingFileError(
            f"{repository}: no such file or folder here, and the Hub gave no model of this name ({first_line(error)}); "
            "check the name, the network and HF_TOKEN"
        ) from error


def _check_hash(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise ConfigError(f"{path}: a sha256 was given, which is of a file, and this is a folder")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        raise CheckpointError(f"{path}: its sha256 is {found}, expected {sha256}: delete the file and get it again")
