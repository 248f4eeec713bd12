"""Trackio: a local dashboard (`trackio show`), or one in a Hugging Face Space."""

import os
from collections.abc import Mapping
from typing import Any

import trackio

from tubelet.config import to_dict
from tubelet.train.sinks import MetricSink


class TrackioSink(MetricSink):
    """Logs rows to Trackio, to the project that TRACKIO_PROJECT names, by default "tubelet"."""

    logged: Any = None

    def log(self, row: Mapping[str, float]) -> None:
        """Log one row."""
        if self.logged is None:
            self.logged = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", "tubelet"),
                name=self.run_id(self.unique_name),
                resume="allow",
                config=to_dict(self.run.config),
            )
        self.logged.log({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))

    def close(self) -> None:
        """Write what is buffered."""
        if self.logged is not None:
            self.logged.finish()
            self.logged = None
