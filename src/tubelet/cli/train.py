"""`tubelet train`."""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from tubelet.cli.command import ConfigurableCommand, Known
from tubelet.config import PlanConfig, TrainConfig, model_preset, resized
from tubelet.config.model import MAX_DEPTH
from tubelet.console import open_console
from tubelet.errors import ConfigError
from tubelet.value_checks import Bounds

PatchSize = Annotated[int | None, Bounds(1, 1024)]
TrainSettings = Annotated[TrainConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class TrainingCommand(ConfigurableCommand):
    """The base of all commands that train a model."""

    DISTRIBUTED = True

    settings: TrainSettings = field(default_factory=TrainConfig)
    """Settings of the run."""
    resume: bool = False
    """Continue the run in --out from its newest checkpoint, with its own settings for defaults."""

    def inputs(self) -> Iterable[str | Path]:
        """See `Command.inputs`."""
        return self.settings.data.sources

    def start(self, config: TrainConfig, out: Path) -> None:
        """Train, and evaluate meanwhile if the settings ask for it."""
        if config.model.pixels is None:
            from tubelet.data.stacks.depth import require_8_bits_in_folders

            require_8_bits_in_folders(config.data.sources)
        from tubelet.tasks.suite import teacher_evaluator
        from tubelet.train.trainer import train

        if self.resume and not config.data.sources:
            raise ConfigError(f"{out}: nothing to resume (no config.json); check --out, or name sources to start a run")
        train(config, out, self.resume, open_console(), evaluate=teacher_evaluator(config))

    @classmethod
    def defaults(cls, options: Known) -> dict[str, Any]:
        """The settings of the run that is resumed."""
        if not options.resume or options.out is None or not (options.out / "config.json").is_file():
            return {}
        from tubelet.train.run_directory import read_config

        return {"settings": read_config(options.out)}


@dataclass(frozen=True, kw_only=True)
class Train(TrainingCommand):
    """Pre-train V-JEPA 2.1 on videos and images."""

    planned: Annotated[PlanConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")] = field(
        default_factory=PlanConfig
    )
    """Settings of a dry run."""
    out: Path | None = None
    """Run directory: checkpoints, metrics, list of bad files. Not needed with --dry-run."""
    model: str | None = None
    """vit-pico, vit-ti, vit-s, vit-b, vit-l, vit-g or vit-G; by default vit-ti, or the model of --init-from."""
    patch_size: PatchSize = None
    """Pixels along a patch's side, instead of the model's own."""
    tubelet_size: PatchSize = None
    """Frames of a video token, instead of the model's own."""
    output_levels: Annotated[int | None, Bounds(1, MAX_DEPTH)] = None
    """Number of output levels, counted from the last, that are used and predicted; 1 is V-JEPA 2.0's choice."""
    stats: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Statistics of `tubelet stats`, by which data of any depth and number of channels are read; by default 8-bit RGB,
    or as the model of --init-from takes them."""

    def inputs(self) -> Iterable[str | Path]:
        """See `Command.inputs`."""
        stats = [self.stats] if self.stats else []
        return stats if self.planned.dry_run else [*super().inputs(), *stats]

    def run(self) -> None:
        """Train, or print the plan of a dry run."""
        if not self.planned.dry_run and self.planned != PlanConfig():
            raise ConfigError("--devices and the options after it only apply with --dry-run")
        if self.out is None and not self.planned.dry_run:
            raise ConfigError("--out is missing: name the run directory")
        sizes = resized(self._model(), self.patch_size, self.tubelet_size)
        if self.output_levels is not None:
            sizes = dataclasses.replace(sizes, output_levels=self.output_levels)
        if self.stats is not None:
            from tubelet.data.pixel_statistics import read_pixel_statistics

            pixels = read_pixel_statistics(self.stats)
            sizes = dataclasses.replace(sizes, channels=pixels.channels, pixels=pixels)
        config = dataclasses.replace(self.settings, model=sizes)
        if self.planned.dry_run or self.out is None:
            from tubelet.planner.plan_table import print_plan
            from tubelet.planner.run_plan import plan_run

            print_plan(plan_run(config, self.planned), open_console())
        else:
            self.start(config, self.out)

    def _model(self) -> Any:
        """The network's sizes: of --model, of the run or file that has them, or of the weights to start from."""
        if self.model is not None:
            return model_preset(self.model)
        resumed = self.resume and self.out is not None and (self.out / "config.json").is_file()
        if resumed or self.file_has_model():
            return self.settings.model
        if not self.settings.init_from:
            return self.settings.model
        from tubelet.train.initialization import config_from_checkpoint

        return config_from_checkpoint(self.settings.init_from)
