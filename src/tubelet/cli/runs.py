"""The commands that train."""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from tubelet.cli.options import checked
from tubelet.config import PlanConfig, TrainConfig, model_preset, recipes, resized
from tubelet.config.model import MAX_DEPTH
from tubelet.console import open_console
from tubelet.errors import TubeletError
from tubelet.validation import Bounds

Run = Annotated[TrainConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")]
Planned = Annotated[PlanConfig, tyro.conf.OmitArgPrefixes, tyro.conf.arg(name="")]


@checked
def train(
    config: Run,
    planned: Planned = PlanConfig(),  # noqa: B008 - frozen
    *,
    out: Path | None = None,
    model: str | None = None,
    patch_size: Annotated[int | None, Bounds(1, 1024)] = None,
    tubelet_size: Annotated[int | None, Bounds(1, 1024)] = None,
    output_levels: Annotated[int | None, Bounds(1, MAX_DEPTH)] = None,
    resume: bool = False,
) -> None:
    """Pre-train V-JEPA 2.1 on videos and images.

    Args:
        config: The run.
        planned: A dry run of it.
        out: Folder of the run: checkpoints, metrics, list of bad files; --dry-run alone needs none.
        model: vit-pico, vit-ti, vit-s, vit-b, vit-l, vit-g or vit-G; by default vit-ti, or what --init-from holds.
        patch_size: Pixels along a patch's side, instead of the model's own.
        tubelet_size: Frames of a video token, instead of the model's own.
        output_levels: How many levels, the last ones, are predicted from and predicted; 1 is V-JEPA 2.0's way.
        resume: Continue the run in --out from its newest checkpoint.
    """
    from tubelet.planner.plan_table import print_plan
    from tubelet.planner.run_plan import plan_run
    from tubelet.train.initialization import config_from_checkpoint
    from tubelet.train.run_directory import CONFIG, read_config
    from tubelet.train.trainer import train as run_training

    if not planned.dry_run and planned != PlanConfig():
        raise TubeletError("--devices and what follows it are of a dry run: add --dry-run, or leave them out")
    if resume and model is None and out and (out / CONFIG).is_file():
        preset = read_config(out).model  # where the run's first weights came from may be gone by now
    elif config.init_from and model is None:
        preset = config_from_checkpoint(config.init_from)
    else:
        preset = model_preset(model or "vit-ti")
    sizes = resized(preset, patch_size, tubelet_size)
    if output_levels is not None:
        sizes = dataclasses.replace(sizes, output_levels=output_levels)
    config = dataclasses.replace(config, model=sizes)
    if planned.dry_run:
        return print_plan(plan_run(config, planned), open_console())
    if out is None:
        raise TubeletError("out is not given: say which folder the run is written to")
    run_training(config, out, resume, open_console())


@checked
def cooldown(config: Run = recipes.cooldown(), *, out: Path, resume: bool = False) -> None:  # noqa: B008 - frozen
    """Cool a pre-trained model down: longer clips, and a learning rate that falls to nothing.

    Args:
        config: The run; --init-from names what is cooled down.
        out: Folder of the run.
        resume: Continue the run in --out from its newest checkpoint.
    """
    if config.init_from is None:
        raise TubeletError("init_from is not given: say which run, checkpoint or released .pt file goes on")
    train(config, out=out, resume=resume)


@checked
def high_resolution(config: Run = recipes.high_resolution(), *, out: Path, resume: bool = False) -> None:  # noqa: B008
    """Cool a pre-trained model down at 384 px.

    Args:
        config: The run; --init-from names what is adapted.
        out: Folder of the run.
        resume: Continue the run in --out from its newest checkpoint.
    """
    cooldown(config, out=out, resume=resume)


@checked
def distill(
    config: Run = recipes.distill(),  # noqa: B008
    *,
    teacher: str | None = None,
    out: Path,
    model: str | None = None,
    patch_size: Annotated[int | None, Bounds(1, 1024)] = None,
    tubelet_size: Annotated[int | None, Bounds(1, 1024)] = None,
    resume: bool = False,
) -> None:
    """Train a small student, and a predictor of its own, to predict a frozen larger model's last level.

    What is kept is the student's average, which `tubelet convert` writes under the released key `ema_encoder`.

    Args:
        config: The run.
        teacher: The frozen model: a run folder, a .safetensors or released .pt file, a released name, or a Hub id.
        out: Folder of the run.
        model: The student: vit-pico, vit-ti, vit-s, vit-b, vit-l, vit-g or vit-G; by default vit-b.
        patch_size: Pixels along a patch's side, instead of the student's own; the teacher's must be the same.
        tubelet_size: Frames of a video token, instead of the student's own; the teacher's must be the same.
        resume: Continue the run in --out from its newest checkpoint.
    """
    from tubelet.pretrained.load import load
    from tubelet.train.initialization import distillation_config
    from tubelet.train.trainer import train as run_training

    teacher = teacher or config.distill_from  # a run that is resumed has one
    if teacher is None:
        raise TubeletError("teacher is not given: say which frozen model the student is to predict")
    if config.distill_from is None or model or patch_size or tubelet_size:
        student = resized(model_preset(model or "vit-b"), patch_size, tubelet_size)
        sizes = distillation_config(student, load(teacher, device="cpu").config)
        config = dataclasses.replace(config, model=sizes)
    run_training(dataclasses.replace(config, distill_from=teacher), out, resume, open_console())
