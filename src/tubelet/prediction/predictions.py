"""The predictions of a head as records in memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from tubelet.errors import BadFile, MissingPackageError
from tubelet.io.csv_tables import CsvDialect, Kind, write_csv
from tubelet.prediction.records import Prediction, ValuePrediction

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, kw_only=True)
class Predictions(Sequence[Prediction | ValuePrediction]):
    """The rows of a table of predictions.

    Attributes:
        columns: names and kinds of the columns of the table.
        records: the rows, in the order of the sources and of time.
        bad_files: files that could not be read, with the reasons.
    """

    columns: Sequence[tuple[str, Kind]]
    records: Sequence[Prediction | ValuePrediction]
    bad_files: Sequence[BadFile] = ()

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.records)

    @overload
    def __getitem__(self, index: int) -> Prediction | ValuePrediction: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Prediction | ValuePrediction]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """A row, or some rows."""
        return self.records[index]

    def __iter__(self) -> Iterator[Prediction | ValuePrediction]:
        """The rows."""
        return iter(self.records)

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The rows as tuples, in the order of `columns`."""
        for each in self.records:
            tail = each.values if isinstance(each, ValuePrediction) else (each.label, each.score)
            yield (each.path, each.start_s, each.end_s, *tail)

    def to_pandas(self) -> "pd.DataFrame":
        """The table as a data frame.

        Raises:
            MissingPackageError: if pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise MissingPackageError("to_pandas needs pandas: pip install pandas") from error
        return pd.DataFrame(list(self.rows()), columns=[name for name, _ in self.columns])

    def to_csv(self, path: str | Path, csv_dialect: CsvDialect = "comma") -> None:
        """Write the table as `tubelet predict` writes predictions.csv.

        Args:
            path: the file.
            csv_dialect: see `tubelet.config.PredictConfig`.

        Raises:
            FileError: if it cannot be written.
        """
        write_csv(Path(path), self.columns, self.rows(), csv_dialect)
