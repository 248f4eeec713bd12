"""Time and memory of listing sources, from a list or folder to the data workers of a run.

Each form of a source lists the same files in its own process, which then starts workers as a run does. Each worker
looks up the names of an epoch, and reports its unique set size (USS) and proportional set size (PSS).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FORMS = ("list", "quoted", "jsonl", "folder")


def main() -> None:
    """Print a row for each form of a source."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1_000_000, help="number of files")
    parser.add_argument("--workers", type=int, default=8, help="data workers")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="forms of the source")
    parser.add_argument("--source", type=Path, help="the package's src folder, to measure another version")
    parser.add_argument("--json", action="store_true", help="print one object as the last line")
    parser.add_argument("--form", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.form:
        print(json.dumps(measure(args.form[0], args.form[1], args.files, args.workers)))
        return
    results = {}
    print(f"{'source':8} {'CPU s':>7} {'peak MB':>8} {'workers':>8} {'USS MB each':>12} {'PSS MB in all':>14}")
    with tempfile.TemporaryDirectory() as folder:
        for form in args.forms:
            source = write(Path(folder), form, args.files)
            path = os.pathsep.join(filter(None, [str(args.source or ""), os.environ.get("PYTHONPATH", "")]))
            module = [sys.executable, "-m", "benchmarks.listing"]
            command = [*module, "--form", form, str(source), "--files", str(args.files)]
            done = subprocess.run(
                [*command, "--workers", str(args.workers)],
                env=os.environ | {"PYTHONPATH": path},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            row = results[form] = json.loads(done.stdout.splitlines()[-1])
            print(
                f"{form:8} {row['cpu_s']:7.2f} {row['peak_mb']:8.0f} {args.workers:8} {row['uss_mb']:12.1f} "
                f"{row['pss_mb']:14.0f}",
                flush=True,
            )
    if args.json:
        print(json.dumps(results))


def write(folder: Path, form: str, files: int) -> Path:
    """A list of files that do not exist, or a folder of empty ones."""
    names = [f"class-{i % 400:03d}/video_{i:08d}.mp4" for i in range(files)]
    if form == "folder":
        root = folder / "files"
        for number in range(min(files, 400)):
            (root / f"class-{number:03d}").mkdir(parents=True)
        for name in names:
            os.close(os.open(root / name, os.O_CREAT | os.O_WRONLY))
        return root
    forms = {
        "list": lambda name, label: f"{name} {label}\n",
        "quoted": lambda name, label: f'"{name}",{label}\n',
        "jsonl": lambda name, label: json.dumps({"path": name, "label": label}) + "\n",
    }
    path = folder / f"{form}.{'jsonl' if form == 'jsonl' else 'csv'}"
    text = (forms[form](name, i % 400) for i, name in enumerate(names))
    path.write_text(("path,label\n" if form == "quoted" else "") + "".join(text))
    return path


def measure(form: str, source: str, files: int, workers: int) -> dict[str, float]:
    """List a source and have workers use the list."""
    from multiprocessing import get_context

    from benchmarks.measure import peak_gb
    from tubelet.config import DataConfig, TrainConfig
    from tubelet.data.loader import build_samplers
    from tubelet.data.sources import list_media
    from tubelet.device import pick_device
    from tubelet.grid import Modality

    start = time.process_time()
    media = list_media([source])
    cpu_s = time.process_time() - start
    assert len(media.videos) == files
    peak_mb = 1000 * peak_gb(pick_device())
    sampler = build_samplers(TrainConfig(data=DataConfig(sources=(source,))), media)[Modality.VIDEO]
    context = get_context("fork")
    results = context.SimpleQueue()
    barrier = context.Barrier(workers)
    processes = [
        context.Process(target=_work, args=(sampler, number, workers, barrier, results)) for number in range(workers)
    ]
    for process in processes:
        process.start()
    used = [results.get() for _ in processes]
    for process in processes:
        process.join()
    return {
        "cpu_s": cpu_s,
        "peak_mb": peak_mb,
        "uss_mb": sum(uss for uss, _ in used) / len(used) / 1e6,
        "pss_mb": sum(pss for _, pss in used) / 1e6,
    }


def _work(sampler, number, workers, barrier, results) -> None:
    """As a data worker does: find the files of an epoch's steps, and name them."""
    import psutil

    for position in range(number, len(sampler), workers):
        index, sample = sampler.sample_at(position)
        index.name(sample)
    barrier.wait()
    memory = psutil.Process().memory_full_info()
    barrier.wait()
    results.put((memory.uss, memory.pss))


if __name__ == "__main__":
    main()
