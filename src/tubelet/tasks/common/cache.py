"""Cache of features on disk: one safetensors file for each model, transform and source, named by a hash of the three.

Training a head reads the same features many times, and so does the next evaluation of the same model, so they are
computed once. Files are renamed when complete, so that an interrupted evaluation resumes.
"""

import hashlib
import json
import os
import sqlite3
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tubelet.data.stacks.listing import stored_files
from tubelet.errors import DataError, FileError
from tubelet.io.arrays import read_safetensors
from tubelet.io.files import atomic_write, cache_dir, describe_os_error
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.fingerprint import hash_weights

DELETE_HINT = "delete this file of cached features and run the command again"


def default_folder() -> Path:
    """The default folder, in the user's cache."""
    return cache_dir() / "features"


def model_hash(model: Backbone) -> str:
    """Hexadecimal digits of a model's settings, and of the names, shapes and values of all of its tensors.

    Settings, because the same weights compute something else with another number of attention heads or other positions.
    """
    return f"{model.config_hash}-{hash_weights(model.state_dict(), with_predictor=True)}"


class FeatureCache:
    """The features of one model in a folder that models share.

    Attributes:
        weights_id: `weights_id` of the model.
        version: that of the package.
        folder: the folder of its features.
    """

    def __init__(self, folder: Path, model: Backbone) -> None:
        """Open or create the folder.

        Raises:
            TubeletError: if it cannot be written.
        """
        self.weights_id = model.weights_id
        # Another version of the package may decode, cut or compute differently. It is read from a file of the package.
        self.version = version("tubelet")
        self.folder = folder / model_hash(model)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            # The hash of a file's content is remembered while the file stays what it is: videos are long. Tools that
            # copy can set the time of modification; the time of status change is the system's.
            self.contents = folder / "contents.sqlite"
            self.known = sqlite3.connect(self.contents, isolation_level=None, timeout=60)
            self.known.execute(
                "create table if not exists contents_2 (path text primary key, size integer, mtime_ns integer, "
                "ctime_ns integer, inode integer, digest text) without rowid"
            )
        except (OSError, sqlite3.Error) as error:
            raise FileError(
                f"{folder}: cannot write the cache of features ({describe_os_error(error)}); choose another --cache"
            ) from error

    def path_for(self, recipe: Mapping[str, Any], sources: list[Path]) -> Path:
        """The file of the features of a source under a transform.

        Args:
            recipe: everything that the features depend on besides the model and the files, ready for JSON.
            sources: the file, or the files of a clip in their order.

        Raises:
            TubeletError: if a source cannot be read.
        """
        identity = {"tubelet": self.version, "recipe": dict(recipe)}
        digest = hashlib.blake2b(json.dumps(identity, sort_keys=True).encode(), digest_size=16)
        for source in sources:
            for file in _stored_files(source):
                digest.update(self._content(file).encode())
        name = digest.hexdigest()
        return self.folder / name[:2] / f"{name[2:]}.safetensors"

    def _content(self, path: Path) -> str:
        try:
            status = path.stat()
            inode = status.st_ino - 2**64 if status.st_ino >= 2**63 else status.st_ino  # SQLite's integers are signed
            stamp = (os.fsencode(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ctime_ns, inode)
            row = self.known.execute(
                "select size, mtime_ns, ctime_ns, inode, digest from contents_2 where path = ?", stamp[:1]
            ).fetchone()
            if row is not None and row[:4] == stamp[1:]:
                return str(row[4])
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            self.known.execute("insert or replace into contents_2 values (?, ?, ?, ?, ?, ?)", (*stamp, digest))
        except OSError as error:
            raise FileError(f"{path}: cannot be read ({error.strerror})") from error
        except sqlite3.Error as error:
            raise DataError(
                f"{self.contents}: cannot read or write the index of the cache ({describe_os_error(error)}); if "
                "it is corrupt, delete it; the features remain"
            ) from error
        return digest


def _stored_files(source: Path) -> list[Path]:
    try:
        return stored_files(source)
    except OSError as error:
        raise FileError(f"{source}: cannot be read ({error.strerror})") from error


def write_features(path: Path, features: Mapping[str, Tensor]) -> None:
    """Write the features of one source atomically.

    Raises:
        TubeletError: if they cannot be written.
    """
    with atomic_write(path, remedy="choose another --cache", also=(SafetensorError,)) as partial:
        save_file({name: tensor.contiguous() for name, tensor in features.items()}, partial)


def read_features(path: Path) -> dict[str, Tensor]:
    """Read what `write_features` wrote.

    Raises:
        TubeletError: if the file is gone or damaged.
    """
    return read_safetensors(path, DELETE_HINT)[0]
