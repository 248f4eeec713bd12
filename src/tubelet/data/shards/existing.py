"""What a folder of shards contains, compared with the requested settings and sources; and the plan of a call.

Which files make which shard is decided before the first is opened. `plan.json` has what the bytes of the shards depend
on, so that an interrupted call is continued only with the same settings and sources.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from tubelet.config import ShardConfig
from tubelet.data.shards.format import BAD_FILES, COPY_INDEX, INDEX
from tubelet.data.shards.reader import open_shards
from tubelet.data.shards.shard_file import BadRow
from tubelet.data.shards.source_list import ShardSource, SourceRow, diff_sources, sources_digest
from tubelet.errors import ConfigError
from tubelet.io.text import read_json, read_jsonl, read_text, validate_content


class ShardPlan(TypedDict):
    """The settings and sources that determine the bytes of the shards: plan.json, and fields of the index header.

    If files were added to existing shards, `files`, `source_size` and `sources` are those of all sources.
    """

    recipe: dict[str, Any]
    shard_mb: float
    files: int
    source_size: int
    sources: str


class _Header(ShardPlan):
    """The fields of the index header that its reader does not check."""

    bad: int


@dataclass(frozen=True)
class ExistingShards:
    """The content of a folder of shards, compared with the sources of a call.

    Attributes:
        new: sources that the folder does not contain.
        rows: sources of its members; empty without an index.
        header: first line of the index; empty without one.
        lines: lines of the index about its members.
        images: number of members that are images.
        gone: keys of sources that are no longer named.
        bad: rows of files that could not be read.
    """

    new: Sequence[ShardSource]
    rows: Sequence[SourceRow] = ()
    header: Mapping[str, Any] = field(default_factory=dict)
    lines: Sequence[str] = ()
    images: int = 0
    gone: Sequence[str] = ()
    bad: Sequence[Mapping[str, Any]] = ()

    @property
    def all_rows(self) -> list[SourceRow]:
        """The sources of all members, existing and new."""
        return [*self.rows, *(source.row for source in self.new)]


def read_existing(out: Path, files: Sequence[ShardSource], config: ShardConfig, shard_mb: float) -> ExistingShards:
    """Read the content of a folder of shards.

    Raises:
        ConfigError: it was made with other settings, or a file changed since.
    """
    if not (out / INDEX).exists():
        return ExistingShards(files)
    folder, plan = open_shards(out), make_plan(config, [source.row for source in files], shard_mb)
    header = validate_content(_Header, dict(folder.header), f"{out / INDEX}, line 1", COPY_INDEX)
    _compare_settings(out, header, plan)
    images = int(folder.members["image"].sum())
    if header["sources"] == plan["sources"]:
        return ExistingShards((), header=folder.header, images=images)
    bad = [row for row, _ in read_jsonl(out / BAD_FILES, BadRow, COPY_INDEX)]
    diff = diff_sources(out, header["files"], files, {row["path"] for row in bad})
    lines = read_text(out / INDEX, COPY_INDEX).splitlines()[1:] if diff.added else ()
    return ExistingShards(diff.added, diff.existing, folder.header, lines, images, diff.removed, bad)


def make_plan(config: ShardConfig, rows: Sequence[SourceRow], shard_mb: float) -> dict[str, Any]:
    """The plan of shards: settings, and a digest of the sources."""
    sizes = {row["path"]: row["size"] for row in rows}
    plan = {"recipe": asdict(config), "shard_mb": shard_mb, "files": len(rows), "source_size": sum(sizes.values())}
    return plan | {"sources": sources_digest(rows)}


def check_plan(path: Path, plan: dict[str, Any]) -> None:
    """Refuse to continue a call that was interrupted if its plan was another one.

    Raises:
        ConfigError: settings or sources differ.
    """
    if path.exists():
        before = read_json(path, ShardPlan, "delete the folder, or choose another --out")
        _compare_settings(path.parent, before, plan)
        if before["sources"] != plan["sources"]:
            files, size = (f"{before[key]} -> {plan[key]}" for key in ("files", "source_size"))
            raise ConfigError(
                f"{path.parent}: has incomplete shards of other source files ({files} files, {size} bytes); complete "
                "them with the same sources, then add others, or delete the folder"
            )


def _compare_settings(out: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to mix shards of different configurations in one folder."""
    old, new = ({"shard_mb": plan["shard_mb"], **plan["recipe"]} for plan in (before, now))
    changed = [f"{key}: {old.get(key)} -> {value}" for key, value in new.items() if old.get(key) != value]
    if changed:
        raise ConfigError(
            f"{out}: contains shards of another configuration ({'; '.join(changed)}); delete it or choose another --out"
        )
