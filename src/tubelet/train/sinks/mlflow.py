"""MLflow: one MLflow run for each run directory, continued when the run is resumed."""

import os
from collections.abc import Mapping

import mlflow

from tubelet.config import to_dict
from tubelet.train.sinks import MetricSink


class MlflowSink(MetricSink):
    """Logs rows to the server that MLFLOW_TRACKING_URI names, by default to `mlflow.db` of the run directory."""

    client: "mlflow.MlflowClient | None" = None
    mlflow_run = ""

    def log(self, row: Mapping[str, float]) -> None:
        """Log one row."""
        if self.client is None:
            local = f"sqlite:///{self.run.path.absolute() / 'mlflow.db'}"
            self.client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", local))
            self.mlflow_run = self.run_id(self._create_run)
        step = int(row["step"])
        for name, value in row.items():
            if name != "step":
                self.client.log_metric(self.mlflow_run, name, value, step=step)

    def _create_run(self) -> str:
        client = self.client
        assert client is not None
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "tubelet")
        existing = client.get_experiment_by_name(name)
        experiment = existing.experiment_id if existing else client.create_experiment(name)
        created: str = client.create_run(experiment, run_name=self.run.path.absolute().name).info.run_id
        for section, values in to_dict(self.run.config).items():
            client.log_param(created, section, str(values)[:6000])
        return created

    def close(self) -> None:
        """End the MLflow run."""
        if self.client is not None:
            self.client.set_terminated(self.mlflow_run)
            self.client = None
