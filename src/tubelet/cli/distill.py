"""`tubelet distill`."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from tubelet.cli.train import PatchSize, TrainingCommand, TrainSettings
from tubelet.config import model_preset, recipes, resized
from tubelet.config.fields import PathText
from tubelet.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Distill(TrainingCommand):
    """Train a small student, and its own predictor, to predict the last level of a frozen, larger teacher.

    The result is the exponential moving average of the student, which `tubelet convert` writes under the released key
    `ema_encoder`.
    """

    settings: TrainSettings = field(default_factory=recipes.distill)
    """Settings of the run."""
    teacher: PathText | None = None
    """The frozen model: a run directory, a .safetensors or released .pt file, a released name, or a Hub id."""
    out: Path
    """Run directory."""
    model: str | None = None
    """The student: vit-pico, vit-ti, vit-s, vit-b, vit-l, vit-g or vit-G; by default vit-b."""
    patch_size: PatchSize = None
    """Pixels along a patch's side, instead of the student's own; must equal the teacher's."""
    tubelet_size: PatchSize = None
    """Frames of a video token, instead of the student's own; must equal the teacher's."""

    def run(self) -> None:
        """Train the student."""
        from tubelet.pretrained.load import load
        from tubelet.train.initialization import distillation_config

        config = self.settings
        teacher = self.teacher or config.distill_from  # a run that is resumed has one
        if teacher is None:
            raise ConfigError("--teacher is missing: name the frozen model whose features the student predicts")
        if config.distill_from is None or self.model or self.patch_size or self.tubelet_size:
            from_file = self.model is None and self.file_has_model()
            sizes = config.model if from_file else model_preset(self.model or "vit-b")
            student = resized(sizes, self.patch_size, self.tubelet_size)
            sizes = distillation_config(student, load(teacher, device="cpu").config)
            config = dataclasses.replace(config, model=sizes)
        self.start(dataclasses.replace(config, distill_from=teacher), self.out)
