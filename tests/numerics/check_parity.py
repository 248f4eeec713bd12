"""Compare this package with what the release computed, case by case.

    python -m tests.numerics.check_parity tests/numerics/teacher_vit
    python -m tests.numerics.check_parity tests/numerics/teacher_vit --reference

The second line puts the executable specification, reference.py, in the package's place.

A folder holds `meta.json` (sizes), `checkpoint.pt` (released layout) and `cases.safetensors` (inputs and outputs). One
line a case: the largest absolute difference, its bound, and whether it holds. Exits 1 if any case is over its bound.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.numerics import reference
from tubelet import objective
from tubelet.checkpoint.state_dict import load_strict
from tubelet.checkpoint.vjepa2_1 import TEACHER_KEYS, ReleasedCheckpoint, read_released
from tubelet.config import ModelConfig, OptimConfig
from tubelet.data.batch import Batch
from tubelet.grid import Mask, MaskedGrid
from tubelet.model.tokenizer import modality_of
from tubelet.train.optim import build_optimizer
from tubelet.train.step import backpropagate
from tubelet.vjepa import VJEPA

Model = VJEPA | reference.System
FORWARD_BOUND = 2e-5  # absolute, fp32
LOSS_BOUND = 1e-5  # relative
INPUTS = {"video": ("video0", "video1"), "image": ("image",)}


class Case(NamedTuple):
    """One comparison: the case's name, its error, and the bound that it must not exceed."""

    name: str
    error: float
    bound: float


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Largest absolute difference; a wrong shape is infinitely far, and so is anything that is not a number."""
    if ours.shape != theirs.shape:
        return float("inf")
    error = (ours.double() - theirs.double()).abs().max().item()
    return error if error == error else float("inf")


def read_folder(folder: Path) -> tuple[dict, dict[str, Tensor], ReleasedCheckpoint]:
    """meta.json, the cases, and the checkpoint, whose sizes must agree with meta.json."""
    meta = json.loads((folder / "meta.json").read_text())
    released = read_released(
        folder / "checkpoint.pt", meta["heads"], meta["predictor_heads"], tuple(meta["norm_levels"])
    )
    config = released.config
    recorded = {
        "dim": config.width,
        "depth": config.depth,
        "patch": config.patch_size,
        "tubelet": config.tubelet_size,
        "norm_levels": list(config.levels),
        "levels": list(config.levels[-config.num_output_levels :]),
        "n_output_levels": config.num_output_levels,
        "predictor_dim": config.predictor.width,
        "predictor_depth": config.predictor.depth,
        "predictor_interpolates_rope": config.predictor.rescale_rope,
    }
    wrong = {key: (meta[key], value) for key, value in recorded.items() if meta[key] != value}
    if wrong:
        sys.exit(f"{folder}: meta.json and the checkpoint disagree (recorded, read): {wrong}")
    return meta, load_file(folder / "cases.safetensors"), released


def package(folder: Path, released: ReleasedCheckpoint) -> VJEPA:
    """The package's model with the checkpoint's weights."""
    model = VJEPA(released.config)
    load_strict(model.student, released.student, "encoder")
    load_strict(model.teacher, released.teacher, "teacher")
    load_strict(model.predictor, released.predictor, "predictor")
    return model


def specification(folder: Path, released: ReleasedCheckpoint) -> reference.System:
    """The executable specification with the same weights."""
    system = reference.System(released.config)
    file = torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=True)
    reference.load(system, folder / "checkpoint.pt", next(key for key in TEACHER_KEYS if key in file))
    return system


def mask_of(cases: dict[str, Tensor], name: str) -> Mask:
    """The context and target indices stored for one mask."""
    return Mask(cases[f"mask.{name}.context"], cases[f"mask.{name}.target"])


@torch.no_grad()
def forward_outputs(model: Model, cases: dict[str, Tensor], config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Everything the release's forward passes are compared in, by the case's name."""
    room = reference if isinstance(model, reference.System) else objective
    student, teacher, predictor = model.student, model.teacher, model.predictor
    for prefix, encoder, inputs in (
        ("encoder", student, ("video", "image", "video_nonsquare")),
        ("ema_encoder", teacher, ("video",)),
    ):
        for name in inputs:
            levels = encoder(cases[name])
            yield f"{prefix}.{name}.final", levels[-1]
            yield f"{prefix}.{name}.levels_concat", torch.cat(levels, dim=-1)
            for i, level in enumerate(levels):
                yield f"{prefix}.{name}.level{i}", level
    yield "targets.video", room.normalize_targets(student(cases["video"]))
    for name, masks in INPUTS.items():
        pixels = cases[name]
        grid, modality = config.grid(*pixels.shape[2:]), modality_of(pixels)
        for i, mask_name in enumerate(masks):
            mask = mask_of(cases, mask_name)
            levels = student(pixels, mask.context)
            yield f"encoder.{name}.masked{i if name == 'video' else ''}.levels_concat", torch.cat(levels, dim=-1)
            yield f"distance.{mask_name}", room.target_distance(mask, grid).sqrt()
            for token in range(config.predictor.mask_tokens):
                if isinstance(model, reference.System):
                    target, context = predictor(levels, mask, grid, modality, token)
                else:
                    target, context = predictor(levels, [MaskedGrid(mask, grid, modality)], token)[0]
                which = f".mask_token{token}" if name == "video" else ""
                yield f"predictor.{mask_name}{which}.target", target
                yield f"predictor.{mask_name}{which}.context", context


def forward_cases(model: Model, cases: dict[str, Tensor], config: ModelConfig) -> Iterator[Case]:
    """Compare every stored output; one that nothing here computes is an error, not a pass."""
    stored = {name for name in cases if name.split(".")[0] not in ("mask", "video", "image", "video_nonsquare")}
    for name, ours in forward_outputs(model, cases, config):
        if name in stored:
            stored.remove(name)
            yield Case(name, difference(ours, cases[name]), FORWARD_BOUND)
    for name in sorted(stored):
        yield Case(f"{name} (not computed here)", float("inf"), FORWARD_BOUND)


def trajectory_cases(model: Model, meta: dict, cases: dict[str, Tensor]) -> Iterator[Case]:
    """Five optimizer steps from the stored weights, the teacher starting equal to the student."""
    recorded = meta["trajectory"]
    model.teacher.load_state_dict(model.student.state_dict())
    numbers = {key: recorded[key] for key in ("lr", "weight_decay", "eps")} | {"betas": tuple(recorded["betas"])}
    is_package = isinstance(model, VJEPA)
    optimizer = build_optimizer(model, OptimConfig(**numbers)) if is_package else reference.optimizer(model, **numbers)
    for step in recorded["steps"]:
        name, weight = step["modality"], recorded["context_weight"]
        masks = [mask_of(cases, mask) for mask in INPUTS[name]]
        if is_package:
            batch = Batch(modality_of(cases[name]), cases[name], masks, 1.0)
            losses = backpropagate(model, [batch], weight, torch.autocast("cpu", enabled=False))
        else:
            losses = torch.stack(model(cases[name], masks, weight))
            losses[0].backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_teacher(recorded["ema"])
        for part, value in zip(("total", "prediction", "context"), losses.tolist(), strict=True):
            relative = abs(value - step[part]) / abs(step[part])
            yield Case(f"trajectory.step{step['step']}.{name}.{part}", relative, LOSS_BOUND)
    for part in ("student", "teacher", "predictor"):
        total = sum(p.detach().double().abs().sum().item() for p in getattr(model, part).parameters())
        relative = abs(total - recorded[f"{part}_l1_after"]) / recorded[f"{part}_l1_after"]
        yield Case(f"trajectory.{part}_l1_after", relative, LOSS_BOUND)


def run(folder: Path, build: Callable[[Path, ReleasedCheckpoint], Model] = package) -> list[Case]:
    """All cases of a folder."""
    meta, cases, released = read_folder(folder)
    model = build(folder, released)
    found = list(forward_cases(model, cases, released.config))
    if "trajectory" in meta:
        found += trajectory_cases(model, meta, cases)
    return found


def main() -> None:
    """Print a line a case; exit 1 if any is over its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--reference", action="store_true", help="check the executable specification instead")
    given = parser.parse_args()
    failed = 0
    found = run(given.folder, specification if given.reference else package)
    for case in found:
        verdict = "ok" if case.error <= case.bound else "OVER"
        failed += verdict == "OVER"
        print(f"{case.name:48s} {case.error:10.2e}  bound {case.bound:.0e}  {verdict}")
    print(f"{len(found) - failed} of {len(found)} cases within their bounds")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
