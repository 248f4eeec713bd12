"""Run tests with other versions of Python, PyTorch and the dependencies: the matrix of CI, one cell at a time.

    python tools/matrix.py --list
    python tools/matrix.py 3.12-newest
    python tools/matrix.py 3.11-oldest -- tests/unit -k model

A cell is PYTHON-VERSIONS. VERSIONS is `pinned` (constraints.txt), `torch-oldest` and `torch-newest` (the same, with the
oldest or the newest PyTorch that pyproject.toml allows), `oldest` (the lower bound of every dependency,
constraints-oldest.txt) or `newest` (no constraints). Without a cell, all run, and those whose interpreter is absent are
named. Each cell has an environment of its own in .venv-matrix/, removed afterward unless --keep. `--torch-index` names
an index with other builds of PyTorch, such as https://download.pytorch.org/whl/cpu.
"""

import argparse
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.11", "3.12", "3.13")
VERSIONS = ("pinned", "torch-oldest", "torch-newest", "oldest", "newest")
CELLS = (*(f"{python}-{versions}" for python in PYTHONS for versions in VERSIONS[:3]), "3.11-oldest", "3.13-newest")
# What the tests need, without linters, types and the site. trackeval needs a newer numpy than the oldest.
EXTRAS = "sample,fp8,lora,map,export,stacks,s3,test"


def torch_bounds() -> tuple[str, str]:
    """The oldest PyTorch that pyproject.toml allows, as a requirement, and the newest."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    (torch,) = (line for line in dependencies if re.match(r"torch\b", line))
    oldest = re.search(r">=([\d.]+)", torch)
    assert oldest, torch
    return f"torch=={oldest[1]}.*", torch


def constraints(versions: str, folder: Path) -> list[str]:
    """The options of pip that fix a cell's versions."""
    if versions == "newest":
        return []
    if versions == "oldest":
        return ["-c", str(ROOT / "constraints-oldest.txt")]
    if versions == "pinned":
        return ["-c", str(ROOT / "constraints.txt")]
    # PyTorch's own dependencies follow its version; everything else stays pinned.
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    oldest, newest = torch_bounds()
    kept = [line for line in lines if not re.match(r"(torch|torchao|setuptools|sympy|networkx)==", line)]
    file = folder / "constraints.txt"
    file.write_text("\n".join([*kept, oldest if versions == "torch-oldest" else newest]) + "\n")
    return ["-c", str(file)]


def interpreter(python: str) -> str | None:
    """The path of an interpreter that runs and has this version."""
    for name in (
        shutil.which(f"python{python}"),
        *sorted(map(str, Path.home().glob(f".pyenv/versions/{python}.*/bin/python"))),
    ):
        if name:
            done = subprocess.run([name, "--version"], capture_output=True, text=True, check=False)
            if done.returncode == 0 and done.stdout.startswith(f"Python {python}."):
                return name
    return None


def run_cell(cell: str, tests: list[str], torch_index: str | None, keep: bool) -> str:
    """Make a cell's environment and run the tests in it; how it ended."""
    python, _, versions = cell.partition("-")
    found = interpreter(python)
    if found is None:
        return f"not run: no Python {python} here"
    folder = ROOT / ".venv-matrix" / cell
    start_s = time.monotonic()
    try:
        subprocess.run([found, "-m", "venv", "--clear", str(folder)], check=True)
        pip = [str(folder / "bin" / "pip"), "install", "--quiet", "--disable-pip-version-check"]
        pip += ["--extra-index-url", torch_index] if torch_index else []
        pip += constraints(versions, folder)
        if subprocess.run([*pip, f"{ROOT}[{EXTRAS}]"], check=False).returncode:
            return "not installed"
        code = subprocess.run(
            [str(folder / "bin" / "python"), "-m", "pytest", *tests], cwd=ROOT, check=False
        ).returncode
        return (
            f"{'passed' if code == 0 else f'FAILED (exit code {code})'} in {(time.monotonic() - start_s) / 60:.1f} min"
        )
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """Run the cells that are named, or all; exit 1 if one fails or cannot be installed."""
    words, tests = sys.argv[1:], ["tests/unit"]
    if "--" in words:
        split = words.index("--")
        words, tests = words[:split], words[split + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", metavar="CELL")
    parser.add_argument("--list", action="store_true", help="print the cells")
    parser.add_argument("--torch-index", help="an extra package index for PyTorch")
    parser.add_argument("--keep", action="store_true", help="keep the environments")
    args = parser.parse_args(words)
    if unknown := [cell for cell in args.cells if cell.partition("-")[2] not in VERSIONS]:
        parser.error(f"{unknown[0]}: not a cell; expected PYTHON-VERSIONS, such as {CELLS[0]}")
    if args.list:
        print(*CELLS, sep="\n")
        return
    results = {}
    for cell in args.cells or CELLS:
        print(f"== {cell}", flush=True)
        results[cell] = run_cell(cell, tests, args.torch_index, args.keep)
        print(f"== {cell}: {results[cell]}", flush=True)
    print(*(f"{cell:20s} {result}" for cell, result in results.items()), sep="\n")
    sys.exit(any(not result.startswith(("passed", "not run")) for result in results.values()))


if __name__ == "__main__":
    main()
