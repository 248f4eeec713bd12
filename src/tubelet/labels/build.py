"""What the readers of label tables and annotation files share: cells to values, names to files, rows to a table."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tubelet.data.manifest import absolute
from tubelet.data.storage import is_url
from tubelet.data.tables import parse_number
from tubelet.labels.records import LabelRow, LabelTable

_NOT_FINITE = re.compile(r"[+-]?(nan|inf(inity)?)", re.IGNORECASE)
_DIGEST_BYTES = 16


def looks_numeric(text: str, decimal_comma: bool = False) -> bool:
    """Whether a cell has a number, or one of the words for values that are no number, such as nan."""
    return parse_number(text, decimal_comma) is not None or bool(_NOT_FINITE.fullmatch(text.strip()))


def split_labels(text: str) -> tuple[str, ...]:
    """The classes of a cell such as `a|b`, each once."""
    return tuple(dict.fromkeys(name for part in text.split("|") if (name := part.strip())))


def resolve_listed(name: str, home: Path) -> Path:
    """The absolute path of a file that a table lists.

    Args:
        name: a path; a relative one is relative to the table's folder, `~` is the home directory.
        home: folder of the table.

    Raises:
        ValueError: says why the name cannot be that of a local file.
    """
    if is_url(name):
        raise ValueError("is a URL, expected a local file; download it")
    if any(ord(character) < 32 or ord(character) == 127 for character in name):
        raise ValueError("is not a valid file name")
    try:
        return Path(absolute(home / Path(name).expanduser()))
    except (OSError, RuntimeError, ValueError) as error:  # a user that is unknown, a loop of links
        raise ValueError(f"cannot be resolved ({error})") from error


def find_media(name: str, home: Path, folders: Sequence[Path] = ()) -> Path:
    """The media file that an annotation program names, possibly by its place on another computer or server.

    Args:
        name: path, file name or URL.
        home: folder of the annotation file.
        folders: more folders to look into, after `home`.

    Returns:
        The first that exists: the path itself; below `home` and `folders`, the path, its last two names, its last one.
        If none does, the last name in `home`.
    """
    if is_url(name) or name.startswith("/data/local-files/"):
        parts = urlsplit(name)
        name = parse_qs(parts.query).get("d", [parts.path])[0] if parts.query else parts.path
        name = unquote(name)
    if name.startswith("file:"):
        name = unquote(urlsplit(name).path)
    name = name.replace("\\", "/").strip()
    if not name or any(ord(character) < 32 for character in name):
        return home / "unnamed"
    names = [part for part in name.split("/") if part not in ("", ".", "..")] or ["unnamed"]
    roots = [home, *folders]
    tails = ["/".join(names[-count:]) for count in (len(names), 2, 1)]
    candidates = [Path(name)] * name.startswith("/") + [root / tail for root in roots for tail in tails]
    resolved = next((path for path in candidates if is_file(path)), home / names[-1])
    return Path(absolute(resolved.absolute()))


def is_file(path: Path) -> bool:
    """Whether a file exists; False for a path that the system refuses."""
    try:
        return path.is_file()
    except OSError:  # such as a name that is too long
        return False


def digest_of(*contents: bytes) -> str:
    """Hash of the contents of files, in hexadecimal."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for content in contents:
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def build_table(
    path: Path,
    form: str,
    digest: str,
    rows: Sequence[LabelRow],
    faults: Iterable[tuple[int, str]] = (),
    *,
    legend: Mapping[int, str] | None = None,
    columns: Sequence[str] | None = None,
    targets: Sequence[str] = (),
    target_faults: Iterable[tuple[int, str]] = (),
    row_kind: str = "annotation",
) -> LabelTable:
    """The table of some rows; columns of a format that has none are those that some row has."""
    if columns is None:
        facts = {
            "path": True,
            "start_s": any(row.start_s is not None for row in rows),
            "end_s": any(row.end_s is not None for row in rows),
            "start_frame": any(row.start_frame is not None for row in rows),
            "end_frame": any(row.end_frame is not None for row in rows),
            "label": any(row.labels for row in rows),
            "mask": any(row.mask is not None for row in rows),
            "split": any(row.split for row in rows),
            "group": any(row.group for row in rows),
        }
        columns = [name for name, present in facts.items() if present]
    legend = dict(sorted((legend or {}).items()))
    classes = sorted({label for row in rows for label in row.labels})
    return LabelTable(
        path=path,
        format=form,
        digest=digest,
        columns=tuple(columns),
        rows=tuple(rows),
        classes=tuple(legend.values()) if "mask" in columns else tuple(classes),
        targets=tuple(targets),
        legend=legend,
        faults=tuple(faults),
        target_faults=tuple(target_faults),
        row_kind=row_kind,
    )
