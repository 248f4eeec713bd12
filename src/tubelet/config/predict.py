"""Settings of applying heads."""

from dataclasses import dataclass

from tubelet.config.fields import Count, Fraction, PathText, Processes, Samples, Settings
from tubelet.io.csv_tables import CsvDialect


@dataclass(frozen=True, kw_only=True)
class PredictConfig(Settings):
    """Settings of applying heads to media."""

    threshold: Fraction | None = None
    """Score from which a class counts as present, or a span begins; None is each head's own, fitted on a part of its
    training files."""
    none_of_these: Fraction | None = None
    """Report "none of these" for clips that are farther from the training clips than this fraction of held-out clips,
    such as 0.99; None never does."""
    causal: bool = False
    """Whether an answer comes from frames up to its time only; for heads that were fitted with causal, which need
    it."""
    video: bool = False
    """Write each video with its timeline, labels and scores drawn in."""
    csv_dialect: CsvDialect = "comma"
    """CSV tables: comma has commas and decimal points; semicolon has semicolons and decimal commas, as spreadsheets
    expect where the decimal separator is a comma."""
    batch_size: Samples = 8
    """Clips per batch."""
    workers: Processes = 1
    """Decoding processes; 0 decodes in the encoding process."""
    prefetch_mb: Count = 2048
    """Maximum of prefetched clips in megabytes (10^6 bytes), at least one batch."""
    allow_path: tuple[PathText, ...] = ()
    """Folders and URLs, besides a manifest's own folder, that the manifest's files may lie in."""
    max_failed_fraction: Fraction = 0.05
    """Fraction of the files that may be unreadable before the command stops."""
