"""`tubelet cooldown` and `tubelet high-resolution`."""

from dataclasses import dataclass, field
from pathlib import Path

from tubelet.cli.train import Train, TrainingCommand, TrainSettings
from tubelet.config import recipes
from tubelet.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Cooldown(TrainingCommand):
    """Cool down a pre-trained model: longer clips, and a learning rate that decays to 1e-6."""

    settings: TrainSettings = field(default_factory=recipes.cooldown)
    """Settings of the run; --init-from names the pre-trained model."""
    out: Path
    """Run directory."""

    def run(self) -> None:
        """Train from the weights of --init-from."""
        if self.settings.init_from is None:
            raise ConfigError("--init-from is missing: name a run, a checkpoint or a released .pt file to start from")
        Train(settings=self.settings, out=self.out, resume=self.resume, config=self.config).run()


@dataclass(frozen=True, kw_only=True)
class HighResolution(Cooldown):
    """Cool down a pre-trained model at 384 px."""

    settings: TrainSettings = field(default_factory=recipes.high_resolution)
    """Settings of the run; --init-from names the pre-trained model."""
