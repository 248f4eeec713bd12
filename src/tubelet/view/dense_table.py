"""Features of a page from a table of `tubelet embed --dense`, read in pieces: its tokens need not fit into memory."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tubelet.data.decode import Video
from tubelet.data.images import read_image
from tubelet.data.part_table import SPAN, parts, row_keys
from tubelet.data.sample_index import version_of
from tubelet.data.stacks import is_image_file
from tubelet.embed.table import dense_rows, read_part, read_settings
from tubelet.errors import ConfigError, DataError, escape_filename
from tubelet.grid import Grid
from tubelet.view.encoder_view import EncoderView
from tubelet.view.quantization import quantize_chunks
from tubelet.view.token_maps import FileTokens
from tubelet.view.viewed_files import ViewedFile

MAX_FILES = 100
_READ_VALUES = 2**22  # values of tokens that are decoded at once
_NOTE = "A table contains features, but no predictor."


@dataclass
class _TableFile:
    """Rows of one file.

    Attributes:
        times: (t,) seconds of the time steps of each clip, by the clip's number.
        clips: number of clips that the file has.
        version: size in bytes and modification time in seconds of the file when it was embedded.
        space: rows and columns of the tokens.
    """

    times: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    clips: int = 0
    version: tuple[int, float] = (0, 0.0)
    space: tuple[int, int] = (0, 0)

    def order(self) -> tuple[NDArray[np.float64], dict[int, NDArray[np.int64]]]:
        """Sorted seconds of all time steps, and where those of each clip are among them."""
        numbers = sorted(self.times)
        seconds = np.concatenate([self.times[number] for number in numbers])
        order = np.argsort(seconds, kind="stable")
        ranks = np.empty(len(order), np.int64)
        ranks[order] = np.arange(len(order))
        ends = np.cumsum([len(self.times[number]) for number in numbers])
        return seconds[order], dict(zip(numbers, np.split(ranks, ends[:-1]), strict=True))


def read_dense_table(
    table: Path, chosen: Sequence[str], directions: int, weights: str | None = None
) -> tuple[list[ViewedFile], EncoderView]:
    """Files of a table, and the deepest level of their tokens, projected and quantized as for any page.

    The quantized tokens are in a temporary file without a name, which ends with the process.

    Args:
        table: a folder that `tubelet embed --dense` wrote.
        chosen: the files to show; none means all.
        directions: most directions that features are projected to.
        weights: id of the weights that the features must be from; None takes any.

    Raises:
        ConfigError: if there are too many files, or a chosen one is not in the table.
        DataError: if the table has no tokens, is not complete or is of another model, or a file is missing or changed.
    """
    settings = read_settings(table)
    if not settings["dense"]:
        raise DataError(
            f"{table}: has no tokens, which the page shows; embed the videos with --dense into another folder"
        )
    if weights not in (None, settings["weights"]):
        raise DataError(
            f"{table}: features are from {settings['model_id']}, --model has other weights; pass the model of "
            "the table, leave --model out, or embed the videos again"
        )
    rows = _choose(table, _list_rows(table), chosen)
    files = [_open_file(path, table_file, settings["fps"]) for path, table_file in rows.items()]
    orders = {path: table_file.order() for path, table_file in rows.items()}
    grids = [Grid(len(orders[path][0]), *table_file.space) for path, table_file in rows.items()]
    starts = dict(zip(rows, np.cumsum([0, *(grid.tokens for grid in grids)]).tolist(), strict=False))

    def chunks() -> Iterator[tuple[NDArray[np.int64], Tensor]]:
        for columns, tokens, _ in dense_rows(table, ["path", "clip_index"], _READ_VALUES):
            for row, clip in zip(columns.to_pylist(), tokens, strict=True):
                if row["path"] not in rows:
                    continue
                if not np.isfinite(clip).all():
                    raise DataError(f"{table}: features of {row['path']} are not finite; embed it by another model")
                h, w = clip.shape[1:3]
                first = starts[row["path"]] + orders[row["path"]][1][row["clip_index"]] * h * w
                yield (first[:, None] + np.arange(h * w)).ravel(), torch.from_numpy(clip.reshape(-1, clip.shape[-1]))

    width = next(iter(chunks()))[1].shape[1]
    with tempfile.TemporaryFile() as file:  # stays open, and on disk, as long as it is mapped
        shape = (sum(grid.tokens for grid in grids), min(directions, width))
        level = quantize_chunks(chunks, np.memmap(file, np.int8, "w+", shape=shape))
    tokens = [FileTokens(grid, orders[path][0], ()) for grid, path in zip(grids, rows, strict=True)]
    return files, EncoderView(settings["model_id"], "", tokens, ["deepest level"], [level], None, _NOTE)


def _list_rows(table: Path) -> dict[str, _TableFile]:
    """All files of a table, without their tokens."""
    rows: dict[str, _TableFile] = {}
    for part in parts(table):
        columns = read_part(part, ["path", "clip_index", "clips", "size_bytes", "changed_s", "grid", "times"], SPAN)
        if row_keys(columns) != columns["path"]:
            raise DataError(
                f"{table}: has spans of videos, and --serve shows whole videos; pass the list to `tubelet view` "
                "without --serve, or embed the whole videos"
            )
        for row in columns.to_pylist():
            file = rows.setdefault(row["path"], _TableFile())
            file.times[row["clip_index"]] = np.array(row["times"])
            file.clips, file.space = row["clips"], (row["grid"][1], row["grid"][2])
            file.version = row["size_bytes"], row["changed_s"]
    return dict(sorted(rows.items()))


def _choose(table: Path, rows: Mapping[str, _TableFile], chosen: Sequence[str]) -> dict[str, _TableFile]:
    by_path = {Path(path).resolve(): path for path in rows}
    for name in chosen:
        if Path(name).resolve() not in by_path:
            raise ConfigError(
                f"{escape_filename(name)} is not in {table}; pass files that were embedded, or embed it, too"
            )
    selected = {by_path[Path(name).resolve()]: rows[by_path[Path(name).resolve()]] for name in chosen} or dict(rows)
    if not selected:
        raise DataError(f"{table}: has no rows yet; wait for `tubelet embed` to finish")
    if len(selected) > MAX_FILES:
        raise ConfigError(
            f"{table} has {len(selected):,} files, expected at most {MAX_FILES} on a page; "
            "name those to show after the table"
        )
    for path, entry in selected.items():
        if len(entry.times) < entry.clips:
            raise DataError(
                f"{table}: has {len(entry.times)} of {entry.clips} clips of {path}; run the same `tubelet embed` again "
                "to complete it"
            )
    return selected


def _open_file(path: str, rows: _TableFile, fps: float) -> ViewedFile:
    """What the page says about a file, which must be that which was embedded."""
    file = Path(path)
    if not file.exists():
        raise DataError(f"{path}: is in the table but not on this machine; move it back, or name the files to show")
    version = version_of(path)
    if version is None or version[0] != rows.version[0]:
        raise DataError(
            f"{path}: has {version[0] if version else 0:,} bytes, {rows.version[0]:,} when it was embedded; "
            "run `tubelet embed` again"
        )
    if is_image_file(path):
        height, width = read_image(path, display=True).shape[:2]
        return ViewedFile(file, False, height, width, 0.0)
    with Video(path, stack_fps=fps, display=True) as video:
        info = video.info
    return ViewedFile(file, True, info.height, info.width, info.duration_s, stack_fps=fps)


def square_side(file: ViewedFile, limit: int) -> dict[str, Any]:
    """Height and width in pixels at which a page draws the central square of a file, which a table has."""
    side = min(limit, file.height, file.width)
    return {"height": side, "width": side}
