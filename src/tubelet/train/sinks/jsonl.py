"""metrics.jsonl of the run directory: one object a line, from which a resumed run restores its history."""

import json
import time
from collections.abc import Mapping
from math import isfinite

from tubelet.train.run_directory import METRICS
from tubelet.train.sinks import MetricSink


class JsonlSink(MetricSink):
    """Appends rows to metrics.jsonl; numbers that are not finite are null, which JSON lacks otherwise."""

    required = True

    def log(self, row: Mapping[str, float]) -> None:
        """Append one row with `time`, in seconds since 1970; it waits in memory while the disk is full."""
        row = {**row, "time": round(time.time(), 3)}
        finite = {name: value if isfinite(value) else None for name, value in row.items()}
        self.run.append(METRICS, json.dumps(finite) + "\n")
