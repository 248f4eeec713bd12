"""Compare the tables of a `tubelet predict` that is killed and resumed with those of an uninterrupted one.

    python -m benchmarks.predict kills --videos 500 --times 5

The script creates short videos, a small encoder and two heads with random weights. It runs `tubelet predict` once
without interruption, and once killed repeatedly with SIGKILL and then resumed, and compares the tables byte by byte.
"""

import random
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np
import torch
import tyro
from rich.console import Console

from tubelet.config import model_preset
from tubelet.heads.head_file import EncoderId, Head, HeadInput, HeadSpec, SpanRule
from tubelet.pretrained.backbone import Backbone

# Parts are written every second instead of every minute, so that a kill falls between two parts.
_CODE = "import tubelet.data.part_table as t; t.PART_SECONDS = 1; from tubelet.cli import main; main()"
_SIZE, _FPS = 64, 12


def kills(*, videos: int = 500, times: int = 5, workers: int = 1, seed: int = 0) -> None:
    """Kill `tubelet predict` and compare its tables with those of an uninterrupted run.

    Args:
        videos: number of videos, of 0.5 to 4 seconds.
        times: number of kills.
        workers: decoding processes.
        seed: seed of the videos, the weights and the moments of the kills.
    """
    console = Console()
    rng = random.Random(seed)
    with TemporaryDirectory() as place:
        folder = Path(place)
        for number in range(videos):
            _write_video(folder / "videos" / f"{number:04d}.mp4", rng.randint(6, 48), number)
        heads = _write_heads(folder, seed)
        words = [*heads, str(folder / "videos"), "--model", str(folder / "encoder"), "--workers", str(workers)]
        command = [sys.executable, "-c", _CODE, "predict", *words, "--out"]
        start_s = time.monotonic()
        subprocess.run([*command, str(folder / "undisturbed")], check=True, stdout=subprocess.DEVNULL)
        console.print(f"undisturbed: {time.monotonic() - start_s:.0f} s")
        out = folder / "killed"
        for number in range(times):
            before = _parts(out)
            process = subprocess.Popen([*command, str(out)], stdout=subprocess.DEVNULL)
            while _parts(out) < before + 1 + number % 3 and process.poll() is None:
                time.sleep(0.02)
            time.sleep(rng.random())
            ended = process.poll()
            process.send_signal(signal.SIGKILL)
            process.wait()
            state = "had ended" if ended is not None else "killed"
            console.print(f"kill {number + 1}: {state}, {_parts(out) - before} parts of the table more")
        done = subprocess.run([*command, str(out)], check=True, capture_output=True, text=True)
        console.print(done.stdout.strip(), markup=False, highlight=False)
        found, expected = _tables(out), _tables(folder / "undisturbed")
        different = [name for name in expected if found.get(name) != expected[name]]
        size = sum(map(len, expected.values()))
        console.print(f"{len(expected)} tables of {size} bytes; different: {', '.join(different) or 'none'}")
    if different or found.keys() != expected.keys():
        sys.exit(1)


def _write_video(path: Path, frames: int, seed: int) -> None:
    """A video of moving stripes."""
    path.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    wave, speed = rng.uniform(0.1, 0.6, 3), rng.uniform(-1, 1, 3)
    y, x = np.mgrid[:_SIZE, :_SIZE]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(_FPS), options={"preset": "ultrafast", "g": "24"})
        stream.width = stream.height = _SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(frames):
            phase = (x + y)[..., None] * wave + number * speed
            pixels = np.uint8(127 + 120 * np.sin(phase))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def _write_heads(folder: Path, seed: int) -> list[str]:
    """A small encoder and two heads with random weights, for the same clip settings."""
    torch.manual_seed(seed)
    model = Backbone(model_preset("vit-pico")).eval().requires_grad_(False)
    model.save_pretrained(folder / "encoder")
    encoder = EncoderId(
        source="none", model_id=model.model_id, weights_id=model.weights_id, config_hash=model.config_hash
    )
    clips = HeadInput(image_size=_SIZE, frames=8, fps=8.0, stride_s=0.5)
    rules = tuple(SpanRule(on=0.5, off=0.4, min_length_s=0.0, max_gap_s=0.0) for _ in range(4))
    paths = []
    for task, network in (("timeline", "temporal"), ("multilabel", "mlp")):
        spec = HeadSpec(
            task=task,
            network=network,
            options={},
            width=model.config.width,
            classes=("a", "b", "c", "d"),
            input=clips,
            encoder=encoder,
            exclusive=False,
            spans=rules if task == "timeline" else (),
        )
        paths.append(str(folder / f"{task}.safetensors"))
        Head(spec).save(paths[-1])
    return paths


def _parts(out: Path) -> int:
    return len(list(out.rglob("part-*.parquet")))


def _tables(out: Path) -> dict[str, bytes]:
    """All tables, to the byte."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.suffix in (".csv", ".parquet", ".jsonl") and "_scores" not in path.parts
    }


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"kills": kills})
