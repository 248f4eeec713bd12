"""What a GPU computes, next to a CPU: steps, whole runs, features, heads and predictions (`make test-cuda`)."""

import csv

import numpy as np
import pytest
import torch

import tubelet
from benchmarks import gpu_sections
from benchmarks.gpu_sections import Check
from tests.helpers.heads import tiny_encoder
from tests.helpers.training import rows, tiny_config, train_quietly
from tests.helpers.video_files import encode

pytestmark = pytest.mark.gpu
DEVICE = torch.device("cuda")
CLIP = {"image_size": 32, "frames": 4, "fps": 8.0, "workers": 0}


@pytest.mark.parametrize("section", ["correctness", "sync", "loop"])
def test_a_section_of_the_check_passes(section):
    found = {}
    getattr(gpu_sections, section)(Check(DEVICE, True, {}), found)
    assert found["checks"] and all(found["checks"].values()), found


def test_a_run_that_is_resumed_on_a_gpu_has_the_losses_of_one_that_was_not_stopped(media, tmp_path):
    config = tiny_config(media, steps=10)
    train_quietly(config, tmp_path)
    losses = [row["loss"] for row in rows(tmp_path)]
    (tmp_path / "checkpoints" / "step-000000010.safetensors").unlink()
    train_quietly(config, tmp_path, resume=True)
    assert [row["loss"] for row in rows(tmp_path)] == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("frames", [1, 4])
def test_features_on_a_gpu_are_those_on_a_cpu(frames, dtype, tolerance, tmp_path):
    tiny_encoder().save_pretrained(tmp_path / "encoder.safetensors")
    clip = torch.randint(0, 256, (2, 3, frames, 32, 32), dtype=torch.uint8)
    expected = tubelet.load(tmp_path / "encoder.safetensors", device="cpu", dtype=torch.float32).encode(clip).tokens
    found = tubelet.load(tmp_path / "encoder.safetensors", device=DEVICE, dtype=dtype).encode(clip).tokens
    assert found.device.type == "cuda"
    assert (found.float().cpu() - expected).norm() < tolerance * expected.norm()


def test_a_head_that_is_fitted_on_a_gpu_predicts_there_what_it_does_on_a_cpu(tmp_path):
    rng = np.random.default_rng(0)
    with (tmp_path / "colors.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "label", "split"))
        for i in range(18):
            color = np.roll((200, 40, 40), i % 3)
            cards = [np.clip(color + rng.normal(0, 20, (32, 32, 3)), 0, 255).astype(np.uint8) for _ in range(8)]
            encode(tmp_path / f"{i}.mp4", cards=cards, fps=8, bframes=0)
            table.writerow((f"{i}.mp4", ("red", "green", "blue")[i % 3], "val" if i >= 12 else "train"))
    encoder = tiny_encoder()
    options = {"networks": ("linear",), "epochs": 20, "cache": tmp_path / "cache"}
    head = tubelet.fit(tmp_path / "colors.csv", tiny_encoder().to(DEVICE), **options, **CLIP)
    sources = [tmp_path / f"{i}.mp4" for i in range(18)]
    on_gpu, on_cpu = (
        tubelet.predict(head, sources, model=model, workers=0) for model in (tiny_encoder().to(DEVICE), encoder)
    )
    assert len(on_gpu) == len(on_cpu) >= 18
    for ours, theirs in zip(on_gpu, on_cpu, strict=True):
        assert (ours.path, ours.label) == (theirs.path, theirs.label)
        assert ours.score == pytest.approx(theirs.score, abs=2e-2)
