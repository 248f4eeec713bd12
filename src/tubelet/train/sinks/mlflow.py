"""MLflow: one MLflow run for each run directory, continued when the run is resumed."""

import os
from collections.abc import Mapping
from pathlib import Path

import mlflow

from tubelet.config import to_dict
from tubelet.io.text import read_text
from tubelet.train.sinks import MetricSink

RUN_ID = "mlflow_run_id.txt"


class MlflowSink(MetricSink):
    """Logs rows to the server that MLFLOW_TRACKING_URI names, by default to `mlflow.db` of the run directory."""

    client: "mlflow.MlflowClient | None" = None
    run_id = ""

    def log(self, row: Mapping[str, float]) -> None:
        """Log one row."""
        if self.client is None:
            local = f"sqlite:///{self.run.path.absolute() / 'mlflow.db'}"
            self.client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", local))
            self.run_id = self._run_id(self.client, self.run.path / RUN_ID)
        step = int(row["step"])
        for name, value in row.items():
            if name != "step":
                self.client.log_metric(self.run_id, name, value, step=step)

    def _run_id(self, client: "mlflow.MlflowClient", path: Path) -> str:
        if path.exists():
            return read_text(path).strip()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "tubelet")
        found = client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else client.create_experiment(name)
        run_id: str = client.create_run(experiment, run_name=self.run.path.name).info.run_id
        for section, values in to_dict(self.run.config).items():
            client.log_param(run_id, section, str(values)[:6000])
        path.write_text(run_id + "\n")
        return run_id

    def close(self) -> None:
        """End the MLflow run."""
        if self.client is not None:
            self.client.set_terminated(self.run_id)
            self.client = None
