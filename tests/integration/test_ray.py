"""The launcher for Ray starts the processes of one run."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.media import write_image, write_video

ROOT = Path(__file__).parents[2]


def test_two_workers_of_a_local_ray_train_one_run(tmp_path):
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'ray[train]'")
    (tmp_path / "videos").mkdir()
    for i in range(3):
        write_video(tmp_path / "videos" / f"{i}.mp4", frames=48)
        write_image(tmp_path / "videos" / f"{i}.jpg")
    run = "videos --out runs/ray --model vit-pico --image-size 64 --frames 4 --fps 7 --steps 2 --batch-size 4"
    command = [sys.executable, str(ROOT / "examples" / "ray_train.py"), "--workers", "2", "--", *run.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes by ddp" in done.stdout + done.stderr
    assert len((tmp_path / "runs" / "ray" / "metrics.jsonl").read_text().splitlines()) == 2
