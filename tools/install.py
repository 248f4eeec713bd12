"""Install the wheel into empty environments with pip and uv, and print sizes and times as a Markdown table.

    python tools/install.py
    python tools/install.py --extras map,export sample --installers uv
    python tools/install.py -- --index-url https://download.pytorch.org/whl/cpu --extra-index-url https://pypi.org/simple
    python tools/install.py --platforms

No cache is used. In each environment, the script runs `tubelet info`, trains two steps and embeds an image. Options
after `--` are passed to both installers. `--platforms` installs nothing: uv resolves the dependencies, and those of
each extra, for Linux, macOS and Windows, from wheels only. uv must be on the PATH.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tools.release import ROOT, build, run

INSTALLERS = ("pip", "uv")
PLATFORMS = {  # uv's names of platforms
    "Linux, x86-64": "x86_64-unknown-linux-gnu",
    "Linux, ARM": "aarch64-unknown-linux-gnu",
    "macOS 14, ARM": "aarch64-apple-darwin",
    "macOS, Intel": "x86_64-apple-darwin",
    "Windows": "x86_64-pc-windows-msvc",
}
NOT_FOR_USERS = ("dev", "test", "docs")
TRIAL = """
from pathlib import Path
from PIL import Image
Path("images").mkdir()
for shade in range(4):
    Image.new("RGB", (64, 64), (60 * shade, 0, 0)).save(f"images/{shade}.png")
"""
TRAIN = "train images --out run --model vit-pico --image-size 64 --steps 2 --batch-size 2 --workers 0"
EMBED = "embed images --model run --out features"
FACTS = """
import importlib.metadata as metadata, sysconfig
from pathlib import Path
packages = Path(sysconfig.get_path("purelib"))
size = sum(file.stat().st_size for file in packages.rglob("*") if file.is_file() and not file.is_symlink())
names = {item.name for item in metadata.distributions(path=[str(packages)])} - {"pip", "setuptools"}
print(len(names), size / 1e6, metadata.version("torch"))
"""


def install_row(installer: str, wheel: Path, extras: str, options: list[str]) -> str:
    """Install into an empty environment, test the command there, and return the row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        python, tubelet = Path(folder, "venv", "bin", "python"), Path(folder, "venv", "bin", "tubelet")
        requirement = f"{wheel}[{extras}]" if extras else str(wheel)
        start = time.monotonic()
        if installer == "uv":
            run("uv", "venv", "--quiet", "--python", sys.executable, Path(folder, "venv"))
            run("uv", "pip", "install", "--quiet", "--no-cache", "--python", python, *options, requirement)
        else:
            run(sys.executable, "-m", "venv", Path(folder, "venv"))
            run(python, "-m", "pip", "install", "--quiet", "--no-cache-dir", *options, requirement)
        seconds = time.monotonic() - start
        clean = {"cwd": folder, "env": {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}}
        run(tubelet, "info", **clean)
        run(python, "-c", TRIAL, **clean)
        run(tubelet, *TRAIN.split(), **clean)
        run(tubelet, *EMBED.split(), **clean)
        packages, megabytes, torch = run(python, "-c", FACTS, **clean).split()
    size = f"{float(megabytes) / 1000:.2f} GB"
    return f"| {installer} | {extras or 'none'} | {torch} | {packages} | {size} | {seconds:.0f} s |"


def platform_row(label: str, platform: str, python: str, extras: list[str]) -> str:
    """Resolve for a platform from wheels only, without and with each extra, and return the row of the table."""

    def resolve(*words: str) -> subprocess.CompletedProcess[str]:
        command = ["uv", "pip", "compile", "pyproject.toml", "--quiet", "--python-platform", platform]
        command += ["--python-version", python, "--only-binary", ":all:", "--no-annotate", "--no-header", *words]
        environment = os.environ | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}
        return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)

    done = resolve()
    if done.returncode:
        cause = re.search(r"Because (.*?),? we can conclude", " ".join(done.stderr.split()))
        return f"| {label} | {python} | no: {cause[1] if cause else done.stderr.strip()} | |"
    torch = re.search(r"^torch==(\S+)", done.stdout, flags=re.MULTILINE)
    missing = [extra for extra in extras if resolve("--extra", extra).returncode]
    return f"| {label} | {python} | yes, torch {torch and torch[1]} | {', '.join(missing) or 'none'} |"


def main() -> None:
    """Print the table of installations, or the table of platforms."""
    words, options = sys.argv[1:], []
    if "--" in words:
        split = words.index("--")
        words, options = words[:split], words[split + 1 :]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", nargs="*", default=[], metavar="A,B", help="sets of extras, after the one without")
    parser.add_argument("--installers", nargs="+", default=INSTALLERS, choices=INSTALLERS)
    parser.add_argument("--platforms", action="store_true", help="resolve for other systems; install nothing")
    parser.add_argument("--pythons", nargs="+", default=["3.11", "3.13"], help="versions of Python for --platforms")
    args = parser.parse_args(words)
    if (args.platforms or "uv" in args.installers) and shutil.which("uv") is None:
        parser.error("uv is not on the PATH; pip install uv, or pass --installers pip")
    if args.platforms:
        known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        extras = [extra for extra in known if extra not in NOT_FOR_USERS]
        print("| system | Python | installs from wheels | extras that do not |\n|---|---|---|---|")
        for label, platform in PLATFORMS.items():
            for python in args.pythons:
                print(platform_row(label, platform, python, extras), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        _, wheel = build(Path(folder))
        print("| installer | extras | PyTorch | packages | size | time |\n|---|---|---|---|---|---|", flush=True)
        for extras in ["", *args.extras]:
            for installer in args.installers:
                print(install_row(installer, wheel, extras, options), flush=True)


if __name__ == "__main__":
    main()
