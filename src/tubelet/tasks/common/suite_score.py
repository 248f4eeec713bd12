"""One of the suite's scores, of all kinds of features."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SuiteScore:
    """A score on the sample set.

    Attributes:
        name: segmentation, depth, camera motion or tracking.
        metric: name of the metric.
        higher_is_better: the better direction.
        values: kind of features -> value; None where the set has nothing to measure it on.
        details: further values, ready for JSON.
    """

    name: str
    metric: str
    higher_is_better: bool
    values: dict[str, float | None]
    details: dict[str, Any]
