"""Records of label tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tubelet.errors import DataError, escape_unprintable

EPISODES = "LeRobot episodes"
"""Format of tables whose rows are whole recordings, of which a file may have several."""
SPLITS = ("train", "val", "test")
"""Values of the column `split`; `val` and `test` are both held out."""


@dataclass(frozen=True, kw_only=True)
class MaskShape:
    """A region of one class: polygons, or runs of pixels.

    Attributes:
        index: index of the class in the mask.
        polygons: for each polygon x and y in turns, in pixels from the upper left corner of the image.
        runs: numbers of pixels outside and inside in turns, the first outside, as is the rest of the box; empty for
            polygons.
        box: left, top, width and height of the runs in pixels.
        by_column: whether the runs go down columns, as in COCO, rather than along rows.
    """

    index: int
    polygons: tuple[tuple[float, ...], ...] = ()
    runs: tuple[int, ...] = ()
    box: tuple[int, int, int, int] = (0, 0, 0, 0)
    by_column: bool = False


@dataclass(frozen=True, kw_only=True)
class MaskShapes:
    """A mask that an annotation file stores as shapes; `read_mask` draws it.

    Attributes:
        size: height and width in pixels.
        shapes: the regions in the order of drawing, later ones over earlier ones; all other pixels are 0.
    """

    size: tuple[int, int]
    shapes: tuple[MaskShape, ...]


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """One row of a label table: a file, or a span of a video, and what is known about it.

    Attributes:
        line: line of the table, or number of the annotation in a file of another format, from 1; for messages.
        path: the media file, absolute.
        start_s: start of the span in seconds of presentation time; None if the row is about the whole file.
        end_s: end of the span in seconds; None if the row is about the whole file. A row with a start and no end is
            about a moment: `check_labels` makes it a span around the moment, unless it has a mask or depth map, which
            belong to the frame at the start.
        start_frame: first frame of the span, from 0, where the table counts frames; `check_labels` replaces it.
        end_frame: frame after the last one of the span, where the table counts frames; `check_labels` replaces it.
        labels: names of classes; empty where the table has a column of labels and this row none.
        values: the number columns, in the order of `LabelTable.targets`.
        mask: PNG of class indices, absolute, or shapes; None without one. `tubelet.labels.masks.read_mask` reads both.
        depth: depth map, absolute; None without one.
        page: page of the mask or depth map, from 0, where its file has one for each frame; `check_labels` fills it.
        split: "train", "val", "test", or "" where the table does not say.
        group: files of one group are never on both sides of a split; "" where the table does not say.
        weight: weight of the row in training.
        source: name of the annotation file, where a table has those of several; for messages.
    """

    line: int
    path: Path
    start_s: float | None = None
    end_s: float | None = None
    start_frame: int | None = None
    end_frame: int | None = None
    labels: tuple[str, ...] = ()
    values: tuple[float, ...] = ()
    mask: Path | MaskShapes | None = None
    depth: Path | None = None
    page: int | None = None
    split: str = ""
    group: str = ""
    weight: float = 1.0
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class LabelTable:
    """A label table.

    Attributes:
        path: the file that it was read from.
        format: description of the file's format, such as "CSV separated by semicolons, UTF-16" or "BORIS".
        digest: hash of the content, in hexadecimal.
        columns: names of the columns that are used.
        rows: the rows.
        classes: names of the classes, sorted; of masks, in the order of their indices.
        targets: names of the number columns.
        legend: index in masks -> name of the class; empty without masks.
        durations_s: media file -> seconds of a video, 0 for an image; filled by `check_labels`.
        faults: line and sentence of each fault that was found while the file was read; `check_labels` raises them
            together with its own.
        target_faults: line and sentence of each cell of a number column without a number, in tables that say otherwise
            what is to be learned; they are faults for regression only.
        row_kind: what a row is in messages: "line", "row" or "annotation".
    """

    path: Path
    format: str
    digest: str
    columns: tuple[str, ...]
    rows: Sequence[LabelRow]
    classes: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    legend: Mapping[int, str] = field(default_factory=dict)
    durations_s: Mapping[Path, float] = field(default_factory=dict)
    faults: Sequence[tuple[int, str]] = ()
    target_faults: Sequence[tuple[int, str]] = ()
    row_kind: str = "line"

    def place_of(self, row: LabelRow) -> str:
        """Where a row is in the file, for messages: "line 7"."""
        return f"{row.source}, " * bool(row.source) + f"{self.row_kind} {row.line}"


class LabelError(DataError):
    """A label table with faults.

    Attributes:
        path: the table.
        faults: one sentence for each fault, with the line of the table; all faults of the table.
    """

    exit_code = 2

    def __init__(self, path: Path, faults: Sequence[str]) -> None:
        self.path = path
        self.faults = tuple(escape_unprintable(fault) for fault in faults)
        super().__init__(f"{path}: {len(faults)} fault{'s' * (len(faults) != 1)}; nothing was computed")

    def __str__(self) -> str:
        return "\n  ".join([super().__str__(), *self.faults])
