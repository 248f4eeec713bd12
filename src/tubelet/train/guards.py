"""What a run does about numbers that go wrong: steps that are skipped, and when it gives up."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tubelet.config import TrainConfig
from tubelet.train.state import RunFolder
from tubelet.types import TubeletError


class Guards:
    """Follows the rows of a run's metrics, the same on every process, since the losses in them are those of all."""

    def __init__(self, config: TrainConfig, run: RunFolder, say: Callable[[str], None]) -> None:
        """Args:
        config: the run.
        run: where alarms are recorded.
        say: tells a person.
        """
        self.config, self.run, self.say = config, run, say
        self.skipped = 0  # steps so far
        self.in_row = 0  # and those at the end

    def restore(self, past: Mapping[str, int]) -> None:
        """Go on from what `summary` made of the rows before."""
        self.skipped, self.in_row = past["skipped"], past["in_row"]

    def observe(self, row: dict[str, Any]) -> None:
        """Take one step's row of plain numbers, in order, and complete it.

        Raises:
            TubeletError: if too many steps in a row had to be skipped.
        """
        skipped = bool(row.pop("skipped"))
        self.skipped += skipped
        self.in_row = self.in_row + 1 if skipped else 0
        row["skipped_steps"] = self.skipped
        if self.in_row == 1:
            self.alarm(
                row["step"],
                "skipped",
                f"the loss ({row['loss']:.4g}) or its gradient is not finite: the step is skipped",
            )

    def check(self, step: int) -> None:
        """Give up where nothing goes any more.

        Raises:
            TubeletError: if so many steps in a row were skipped as the config allows.
        """
        if self.in_row >= self.config.guards.max_skipped:
            raise TubeletError(
                f"the loss or its gradient was not finite in {self.in_row} steps in a row, the last of them step "
                f"{step}, and the run stops (--max-skipped); the last checkpoint is kept: lower the learning rate "
                "(--lr), or compute in --precision fp32, and continue with --resume"
            )

    def alarm(self, step: int, kind: str, said: str, **more: Any) -> None:
        """Say something, and record it; see `RunFolder.add_alarm`."""
        self.run.add_alarm(step, kind, said, **more)
        self.say(f"step {step}: {said}")


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """What `Guards` knew after some rows of metrics."""
    counts = [0, *(row.get("skipped_steps", 0) for row in rows)]
    in_row = 0
    while in_row + 1 < len(counts) and counts[-1 - in_row] > counts[-2 - in_row]:
        in_row += 1
    return {"skipped": counts[-1], "in_row": in_row}
