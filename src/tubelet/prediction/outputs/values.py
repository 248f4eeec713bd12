"""Values of clips: the targets of a regression.

n clips, K targets.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from tubelet.io.csv_tables import CLIP_COLUMNS, Kind
from tubelet.prediction.label_output import PREDICTIONS, SUMMARY
from tubelet.prediction.media_predictions import MediaPredictions, value_curves
from tubelet.prediction.outputs.base import FileScores, HeadOutput
from tubelet.prediction.records import ValuePrediction

TASKS = ("regression",)
_SUMMARY_COLUMNS: tuple[tuple[str, Kind], ...] = (
    ("path", "text"),
    ("target", "text"),
    ("mean_value", "number"),
    ("min_value", "number"),
    ("max_value", "number"),
)


class ValueOutput(HeadOutput):
    """Values of clips side by side.

    `predictions.csv` has the columns path, start_s, end_s and one for each target, which label tables have, too.
    `summary.csv` has their mean over time, minimum and maximum in each file. Cells of clips that are unlike all
    training clips are empty with `none_of_these`.
    """

    def records(self, item: FileScores) -> Iterator[ValuePrediction]:
        """The values of a file, clip by clip; NaN for a clip unlike all training clips."""
        for rows in item.rows:
            values = np.where(self.is_novel(rows.distance)[:, None], np.nan, rows.scores.astype(np.float64))
            for start_s, end_s, row_values in zip(
                rows.start_s.tolist(), rows.end_s.tolist(), values.tolist(), strict=True
            ):
                yield ValuePrediction(path=item.file.path, start_s=start_s, end_s=end_s, values=tuple(row_values))

    @property
    def columns(self) -> Sequence[tuple[str, Kind]]:
        """Names and kinds of the columns of the table."""
        targets: list[tuple[str, Kind]] = [(name, "number") for name in self.head.spec.classes]
        return [*CLIP_COLUMNS, *targets]

    def write(self, files: Iterable[FileScores]) -> None:
        """Write `predictions.csv`, `predictions.parquet` and `summary.csv`."""
        targets = self.head.spec.classes
        ascii_only = self.ascii_paths and all(map(str.isascii, targets))
        with (
            self.table_writer(PREDICTIONS, self.columns, ascii_only) as table,
            self.table_writer(SUMMARY, _SUMMARY_COLUMNS, ascii_only, parquet=False) as summary,
        ):
            for item in files:
                weight, total = 0.0, np.zeros(len(targets))
                low, high = np.full(len(targets), np.inf), np.full(len(targets), -np.inf)
                for each in self.records(item):
                    values = np.array(each.values)
                    if np.isnan(values).any():
                        table.add((each.path, each.start_s, each.end_s, *(None for _ in targets)))
                        self.count("unlike all training clips, without values")
                        continue
                    table.add((each.path, each.start_s, each.end_s, *each.values))
                    seconds = (each.end_s - each.start_s) or 1.0
                    weight, total = weight + seconds, total + seconds * values
                    low, high = np.minimum(low, values), np.maximum(high, values)
                if weight:
                    for name, *numbers in zip(targets, total / weight, low, high, strict=True):
                        summary.add((item.file.key, name, *map(float, numbers)))
        self.counts = {"rows": table.rows, **self.counts}

    def media_predictions(self, item: FileScores) -> MediaPredictions:
        """The values of a file as curves."""
        curves = value_curves(list(self.records(item)), self.head.spec.classes)
        return MediaPredictions(path=item.file.path, duration_s=item.file.video_s, curves=curves)


OUTPUT = ValueOutput
