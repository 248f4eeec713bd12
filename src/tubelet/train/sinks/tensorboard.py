"""TensorBoard scalars, in `tensorboard/` of the run directory."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tubelet.train.sinks import MetricSink

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardSink(MetricSink):
    """Writes each metric as a scalar; rows that are logged again replace earlier ones."""

    writer: "SummaryWriter | None" = None

    def log(self, row: Mapping[str, float]) -> None:
        """Write one row."""
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter  # takes seconds to import

            self.writer = SummaryWriter(str(self.run.path / "tensorboard"), purge_step=self.step + 1)
        for name, value in row.items():
            if name != "step":
                self.writer.add_scalar(name, value, row["step"])

    def rewind(self, step: int) -> None:
        """Begin a new file, which hides the rows after `step` in the old one."""
        self.close()
        super().rewind(step)

    def close(self) -> None:
        """Close the file."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None
