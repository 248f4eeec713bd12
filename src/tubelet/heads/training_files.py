"""Recognition of the files that a head was trained on, without their names in the head file."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

_DIGEST_BYTES = 8


def file_id(path: Path) -> str:
    """Hash of the name and the size of a file, in hexadecimal; empty if it does not exist or is a folder.

    It is the same in another folder, and another one after each change of the size.
    """
    try:
        if not path.is_file():
            return ""
        text = f"{path.name}\0{path.stat().st_size}"
    except OSError:
        return ""
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=_DIGEST_BYTES).hexdigest()


def file_ids(paths: Iterable[Path]) -> tuple[str, ...]:
    """The hashes of the existing ones of some files, each once, sorted."""
    return tuple(sorted({file_id(path) for path in paths} - {""}))
