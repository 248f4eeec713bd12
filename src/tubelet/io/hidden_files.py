"""Hidden directory entries: files that operating systems, disks and programs add to a user's files."""

from collections.abc import Iterable
from pathlib import Path

# Compared case-insensitively. Names that start with a dot are hidden too: ._NAME and .DS_Store of macOS,
# .ipynb_checkpoints, .Trash-1000, .nfs0000, .snapshot.
_NAMES = frozenset(
    {
        "__macosx",  # zip files made by macOS
        "__pycache__",
        "lost+found",  # the root of an ext file system
        "thumbs.db",  # Windows
        "ehthumbs.db",
        "ehthumbs_vista.db",
        "desktop.ini",
        "system volume information",
        "$recycle.bin",
        "found.000",
        "icon\r",  # macOS
        "network trash folder",
        "temporary items",
        "@eadir",  # network storage
        "@recycle",
        "@recently-snapshot",
        "@sharebin",
        "@tmp",
        "#recycle",
        "#snapshot",
    }
)
# Alternate streams of Synology and Windows that were copied as files.
_SUFFIXES = ("@synoeastream", "@synoresource", ":zone.identifier", ":encryptable")


def is_hidden(name: str) -> bool:
    """Whether an entry is ignored when a directory is listed.

    Args:
        name: one component of a path; not applied to components that the user names.
    """
    if name.startswith("."):
        return True
    small = name.lower()
    return small in _NAMES or small.startswith("~$") or small.endswith(_SUFFIXES)


def has_hidden(path: str) -> bool:
    """Whether any component of a relative path with slashes is hidden."""
    return any(map(is_hidden, path.split("/")))


def without_hidden(paths: Iterable[Path]) -> list[Path]:
    """The paths whose names are not hidden, sorted."""
    return sorted(path for path in paths if not is_hidden(path.name))
