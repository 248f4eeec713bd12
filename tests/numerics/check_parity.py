"""Compare this package with what the reference computed, case by case.

    python tests/numerics/check_parity.py tests/numerics/teacher_vit

A folder holds `meta.json` (sizes), `checkpoint.pt` (released layout) and `cases.safetensors` (inputs and outputs). One
line a case: the largest absolute difference, its bound, and whether it holds. Exits 1 if any case is over its bound.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from tubelet.config import OptimConfig
from tubelet.model.encoder import Encoder
from tubelet.model.predictor import Predictor
from tubelet.model.tokenizer import modality_of
from tubelet.objective import normalised_targets, target_distance
from tubelet.released import Released, load_exactly, read_released
from tubelet.train.optim import build_optimizer
from tubelet.types import Mask
from tubelet.vjepa import VJEPA

FORWARD_BOUND = 2e-5  # absolute, fp32
LOSS_BOUND = 1e-3  # relative
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


def read_folder(folder: Path) -> tuple[dict, dict[str, Tensor], Released]:
    """meta.json, the cases, and the checkpoint, whose sizes must agree with meta.json."""
    meta = json.loads((folder / "meta.json").read_text())
    released = read_released(
        folder / "checkpoint.pt", meta["heads"], meta["predictor_heads"], tuple(meta["norm_levels"])
    )
    config = released.config
    stated = {
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
    wrong = {key: (meta[key], value) for key, value in stated.items() if meta[key] != value}
    if wrong:
        sys.exit(f"{folder}: meta.json and the checkpoint disagree (stated, read): {wrong}")
    return meta, load_file(folder / "cases.safetensors"), released


def build(released: Released) -> tuple[Encoder, Encoder, Predictor]:
    """Student, teacher and predictor with the checkpoint's weights."""
    student, teacher, predictor = Encoder(released.config), Encoder(released.config), Predictor(released.config)
    load_exactly(student, released.student, "encoder")
    load_exactly(teacher, released.teacher, "teacher")
    load_exactly(predictor, released.predictor, "predictor")
    return student, teacher, predictor


def mask_of(cases: dict[str, Tensor], name: str) -> Mask:
    """The context and target indices stored for one mask."""
    return Mask(cases[f"mask.{name}.context"], cases[f"mask.{name}.target"])


@torch.no_grad()
def forward_outputs(cases: dict[str, Tensor], released: Released) -> Iterator[tuple[str, Tensor]]:
    """Everything the reference's forward passes are compared in, by the case's name."""
    student, teacher, predictor = build(released)
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
    yield "targets.video", normalised_targets(student(cases["video"]))
    for name, masks in INPUTS.items():
        pixels = cases[name]
        grid, modality = student.tokenizer.grid(pixels), modality_of(pixels)
        for i, mask_name in enumerate(masks):
            mask = mask_of(cases, mask_name)
            levels = student(pixels, mask.context)
            yield f"encoder.{name}.masked{i if name == 'video' else ''}.levels_concat", torch.cat(levels, dim=-1)
            yield f"distance.{mask_name}", target_distance(mask, grid).sqrt()
            for token in range(released.config.predictor.mask_tokens):
                target, context = predictor(levels, mask, grid, modality, token)
                which = f".mask_token{token}" if name == "video" else ""
                yield f"predictor.{mask_name}{which}.target", target
                yield f"predictor.{mask_name}{which}.context", context


def forward_cases(cases: dict[str, Tensor], released: Released) -> Iterator[Case]:
    """Compare every stored output; one that nothing here computes is an error, not a pass."""
    stored = {name for name in cases if name.split(".")[0] not in ("mask", "video", "image", "video_nonsquare")}
    for name, ours in forward_outputs(cases, released):
        if name in stored:
            stored.remove(name)
            yield Case(name, difference(ours, cases[name]), FORWARD_BOUND)
    for name in sorted(stored):
        yield Case(f"{name} (not computed here)", float("inf"), FORWARD_BOUND)


def trajectory_cases(meta: dict, cases: dict[str, Tensor], released: Released) -> Iterator[Case]:
    """Five optimiser steps from the stored weights, the teacher starting equal to the student."""
    stated = meta["trajectory"]
    model = VJEPA(released.config)
    load_exactly(model.student, released.student, "encoder")
    load_exactly(model.teacher, released.student, "encoder")
    load_exactly(model.predictor, released.predictor, "predictor")
    config = OptimConfig(
        lr=stated["lr"], weight_decay=stated["weight_decay"], betas=tuple(stated["betas"]), eps=stated["eps"]
    )
    optimizer = build_optimizer(model, config)
    for step in stated["steps"]:
        name = step["modality"]
        masks = [mask_of(cases, mask) for mask in INPUTS[name]]
        losses = model(cases[name], masks, stated["context_weight"])
        losses.total.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.update_teacher(stated["ema"])
        for part, value in losses._asdict().items():
            relative = abs(value.item() - step[part]) / abs(step[part])
            yield Case(f"trajectory.step{step['step']}.{name}.{part}", relative, LOSS_BOUND)
    for part in ("student", "teacher", "predictor"):
        total = sum(p.detach().double().abs().sum().item() for p in getattr(model, part).parameters())
        relative = abs(total - stated[f"{part}_l1_after"]) / stated[f"{part}_l1_after"]
        yield Case(f"trajectory.{part}_l1_after", relative, LOSS_BOUND)


def run(folder: Path) -> list[Case]:
    """All cases of a folder."""
    meta, cases, released = read_folder(folder)
    found = list(forward_cases(cases, released))
    if "trajectory" in meta:
        found += trajectory_cases(meta, cases, released)
    return found


def main() -> None:
    """Print a line a case; exit 1 if any is over its bound."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    failed = 0
    found = run(parser.parse_args().folder)
    for case in found:
        verdict = "ok" if case.error <= case.bound else "OVER"
        failed += verdict == "OVER"
        print(f"{case.name:48s} {case.error:10.2e}  bound {case.bound:.0e}  {verdict}")
    print(f"{len(found) - failed} of {len(found)} cases within their bounds")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
