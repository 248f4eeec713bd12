"""Weights & Biases: one W&B run for each run directory, continued when the run is resumed."""

from collections.abc import Mapping
from typing import Any

import wandb

from tubelet.config import to_dict
from tubelet.train.sinks import MetricSink


class WandbSink(MetricSink):
    """Logs rows to W&B, against `step` as the x axis, since a run that rewinds logs some steps twice.

    W&B's own environment variables say where the rows go: WANDB_PROJECT, WANDB_MODE=offline and others.
    """

    logged: Any = None

    def log(self, row: Mapping[str, float]) -> None:
        """Log one row."""
        if self.logged is None:
            self.logged = wandb.init(
                dir=self.run.path.absolute(),
                id=self.run_id(self.unique_name),
                resume="allow",
                config=to_dict(self.run.config),
            )
            self.logged.define_metric("*", step_metric="step")
        self.logged.log(dict(row))

    def close(self) -> None:
        """Finish the upload."""
        if self.logged is not None:
            self.logged.finish()
            self.logged = None
