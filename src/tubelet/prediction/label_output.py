"""What outputs of labels have in common: the tables of labels and of their seconds and bouts."""

from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from tubelet.io.csv_tables import CLIP_COLUMNS, Kind
from tubelet.prediction.media_predictions import MediaPredictions
from tubelet.prediction.outputs.base import FileScores, HeadOutput
from tubelet.prediction.records import NONE_OF_THESE, Prediction

PREDICTIONS, SUMMARY = "predictions", "summary"
LABEL_COLUMNS: tuple[tuple[str, Kind], ...] = (*CLIP_COLUMNS, ("label", "text"), ("score", "score"))
_SUMMARY_COLUMNS: tuple[tuple[str, Kind], ...] = (
    ("path", "text"),
    ("label", "text"),
    ("seconds", "seconds"),
    ("bouts", "count"),
    ("fraction", "score"),
)
_GAP_S = 1e-6  # between spans of one bout, for rounding


@dataclass
class _Bouts:
    """How long and how often a label occurs in a file."""

    seconds: float = 0.0
    count: int = 0
    end_s: float = -1.0

    def add(self, each: Prediction) -> None:
        """Take the next prediction of the label, by ascending start."""
        self.count += each.start_s > self.end_s + _GAP_S or each.end_s == each.start_s
        self.seconds += each.end_s - max(each.start_s, min(self.end_s, each.end_s))
        self.end_s = max(self.end_s, each.end_s)


class LabelOutput(HeadOutput):
    """An output of labels.

    `predictions.csv` has the columns path, start_s, end_s, label and score, which label tables have, too: it can be
    corrected in a spreadsheet and passed to `fit`. `summary.csv` has the seconds, the bouts (spans of one label that
    adjoin are one) and the fraction of the duration of each label in each video, and the labels of each image.
    """

    @abstractmethod
    def records(self, item: FileScores) -> Iterator[Prediction]:
        """The labels of a file, by ascending start; an empty label where there is none."""

    @property
    def columns(self) -> Sequence[tuple[str, Kind]]:
        """Names and kinds of the columns of the table."""
        return LABEL_COLUMNS

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels that may occur."""
        more = () if self.limit is None else (NONE_OF_THESE,)
        return (*self.head.spec.classes, *more)

    def write(self, files: Iterable[FileScores]) -> None:
        """Write `predictions.csv`, `predictions.parquet` and `summary.csv`."""
        ascii_only = self.ascii_paths and all(map(str.isascii, self.classes))
        with (
            self.table_writer(PREDICTIONS, LABEL_COLUMNS, ascii_only) as table,
            self.table_writer(SUMMARY, _SUMMARY_COLUMNS, ascii_only, parquet=False) as summary,
        ):
            for item in files:
                bouts = {label: _Bouts() for label in self.classes}
                for each in self.records(item):
                    table.add((each.path, each.start_s, each.end_s, each.label, each.score))
                    if each.label:
                        bouts[each.label].add(each)
                    if each.label in ("", NONE_OF_THESE):
                        self.count("without a label" if not each.label else f"with {NONE_OF_THESE!r}")
                for label, spans in bouts.items():
                    if spans.count or item.file.duration_s:
                        fraction = spans.seconds / item.file.duration_s if item.file.duration_s else None
                        summary.add((item.file.key, label, spans.seconds, spans.count, fraction))
        self.counts = {"rows": table.rows, **self.counts}

    def media_predictions(self, item: FileScores) -> MediaPredictions:
        """The labels of a file."""
        labels = [each for each in self.records(item) if each.label]
        return MediaPredictions(path=item.file.path, duration_s=item.file.video_s, labels=labels)
