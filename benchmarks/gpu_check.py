"""Measure a new GPU machine in one command: under ten minutes, without a network.

    PYTHONPATH=src python -m benchmarks.gpu_check --out runs/gpu
    PYTHONPATH=src python -m benchmarks.gpu_check --out runs/gpu --only steps,encode
    PYTHONPATH=src python -m benchmarks.gpu_check --out runs/gpu --only '' --markdown
    PYTHONPATH=src python -m benchmarks.gpu_check --smoke

OUT/gpu_check.json is written after every section, so an interrupted run keeps its results; a repeated section replaces
its earlier result. A section whose packages are missing is skipped. A section that exceeds its time limit keeps its
partial result. `--smoke` uses tiny sizes and also runs on a CPU. The exit code is 1 if a section, or a check in it,
fails.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks import gpu_sections as sections
from benchmarks.gpu_sections import Check, Measurements


class Section(NamedTuple):
    """A section of the check.

    Attributes:
        run: function that fills the dictionary of results.
        seconds: time limit.
    """

    run: Callable[[Check, Measurements], None]
    seconds: float


SECTIONS = {
    "environment": Section(sections.environment, 15),
    "ceilings": Section(sections.ceilings, 15),
    "correctness": Section(sections.correctness, 40),
    "sync": Section(sections.sync, 15),
    "attention": Section(sections.attention, 40),
    "loop": Section(sections.loop, 40),
    "steps": Section(sections.steps, 280),
    "encode": Section(sections.encode, 50),
    "data": Section(sections.data, 60),
}
FILE = "gpu_check.json"


def main(arguments: list[str] | None = None) -> int:
    """Run the sections, print their results and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the JSON file")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections to run, separated by commas")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to test the script itself")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/performance.md at the end")
    options = parser.parse_args(arguments)
    names = [name for name in options.only.split(",") if name]
    if unknown := sorted(set(names) - set(SECTIONS)):
        parser.error(f"--only: there is no section {', '.join(unknown)}; expected some of {', '.join(SECTIONS)}")
    if not torch.cuda.is_available() and not options.smoke and names:
        parser.error(f"torch {torch.__version__} finds no CUDA device; --smoke runs tiny sizes on the CPU")
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / FILE
    results: dict[str, Measurements] = json.loads(path.read_text()) if path.exists() else {}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":  # takes seconds, and must not be interrupted
        import_module("torch._dynamo")
    for name in names:
        results[name] = run_section(SECTIONS[name], Check(device, options.smoke, results))
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"== {name} {json.dumps(results[name], indent=1)}", flush=True)
    if options.markdown:
        print(markdown(results))
    problems = [problem for name in names for problem in problems_of(name, results[name])]
    print("\n".join(problems) or "nothing failed", flush=True)
    return int(any("FAILED" in problem for problem in problems))


def run_section(section: Section, check: Check) -> Measurements:
    """Results of a section, its time, and the reason if it ended early."""
    found: Measurements = {}
    start_s = time.monotonic()
    seconds = section.seconds * (20 if check.smoke else 1)  # a CPU may be slow or busy
    check.deadline = start_s + seconds
    try:
        with sections.time_limit(seconds):
            section.run(check, found)
    except sections.OutOfTime as stopped:
        found["stopped"] = str(stopped)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] in ("tubelet", "benchmarks", "tests"):
            found["error"] = traceback.format_exc()[-3000:]
        else:
            found["skipped"] = f"{error.name} is not installed"
    except Exception:  # continue with the other sections after any error
        found["error"] = traceback.format_exc()[-3000:]
    sections.release_memory()
    found["seconds"] = time.monotonic() - start_s
    return rounded(found)


def rounded(value: Any) -> Any:
    """The value with numbers rounded to five digits."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, list) else value


def problems_of(name: str, found: Measurements) -> list[str]:
    """Lines for skipped parts and failed checks of a section."""
    lines = [f"{name}: {kind}: {found[kind]}" for kind in ("skipped", "stopped") if kind in found]
    for row, value in found.items():
        if isinstance(value, dict):
            lines += [f"{name}: {row}: {kind}: {value[kind]}" for kind in ("skipped", "error") if kind in value]
    if "error" in found:
        lines.append(f"{name}: FAILED: {found['error'].strip().splitlines()[-1]}")
    return lines + [f"{name}: FAILED: {text}" for text, passed in found.get("checks", {}).items() if not passed]


def markdown(results: dict[str, Measurements]) -> str:
    """Tables of the results, for docs/performance.md."""
    about, peak = results.get("environment", {}), results.get("ceilings", {})
    versions = [f"{name} {about[key]}" for name, key in VERSIONS.items() if about.get(key)]
    blocks = [f"{about.get('device', 'unknown device')}, {', '.join(versions)}."]
    if "bf16_tflop_per_s" in peak:
        blocks[0] += (
            f" An 8192³ product in bf16 ran at {peak['bf16_tflop_per_s']:.0f} TFLOP/s, a copy on the device at "
            f"{peak['copy_tb_per_s']:.1f} TB/s; {peak['us_per_small_kernel']:.1f} µs for a small kernel."
        )
    rows = [(name, *(cell(row, *column) for column in STEP_COLUMNS)) for name, row in rows_of(results, "steps")]
    blocks.append(table(("step", *(title for title, _, _ in STEP_TITLES)), rows))
    rows = [
        (
            name,
            cell(row, "length", "d"),
            ", ".join(map(str, row["new_length_ms"])),
            cell(row, "known_length_ms", ".3g"),
            cell(row, "tflop_per_s", ".0f"),
        )
        for name, row in rows_of(results, "attention")
    ]
    blocks.append(table(("attention", "tokens", "ms, new lengths", "ms, known length", "TFLOP/s"), rows))
    rows = [
        (name, cell(row, "batch", "d"), cell(row, "per_s", ".1f"), cell(row, "peak_gib", ".2f"))
        for name, row in rows_of(results, "encode")
    ]
    blocks.append(table(("encoding", "batch", "a second", "peak GiB"), rows))
    data = results.get("data", {})
    rows = [(f"made from {kind}", f"{rate:.1f}") for kind, rate in data.get("clips_per_s", {}).items()]
    rows += [(f"taken by {name}", f"{rate:.1f}") for name, rate in data.get("steps_take_per_s", {}).items()]
    blocks.append(table((f"{data.get('workers', '')} workers", "samples/s"), rows))
    return "\n\n".join(block for block in blocks if block)


VERSIONS = {"torch": "torch", "CUDA": "cuda", "cuDNN": "cudnn", "Python": "python", "measured": "date"}
STEP_TITLES = (
    ("s/step", "s_per_step", ".3g"),
    ("s/step, new masks", "s_per_step_new_masks", ".3g"),
    ("samples/s", "samples_per_s", ".1f"),
    ("MFU", "mfu", ".1%"),
    ("peak GiB", "peak_gib", ".2f"),
    ("reserved GiB", "reserved_gib", ".2f"),
    ("kernels", "kernels", ",d"),
    ("idle", "idle_fraction", ".0%"),
)
STEP_COLUMNS = tuple((key, form) for _, key, form in STEP_TITLES)


def rows_of(results: dict[str, Measurements], section: str) -> list[tuple[str, Measurements]]:
    """A section's rows."""
    return [(name, row) for name, row in results.get(section, {}).items() if isinstance(row, dict) and name != "checks"]


def cell(row: Measurements, key: str, form: str) -> str:
    """A cell of a table: the value, or why the row has none."""
    if key in row:
        return format(row[key], form)
    return next((kind for kind in ("skipped", "error") if kind in row), "")


def table(titles: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown; nothing without rows."""
    lines = [titles, tuple("---" for _ in titles), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) if rows else ""


if __name__ == "__main__":
    sys.exit(main())
