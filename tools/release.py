"""Build the wheel and the source distribution, and try the wheel in an empty environment.

    python tools/release.py
    python tools/release.py --out dist --no-deps

1. Builds both into --out, from a copy of the files that git knows or would add; the wheel is built from the source
   distribution, as pip would build it.
2. Checks that the version is the changelog's newest, that the wheel has the package's templates and its type marker,
   and that the source distribution has tests, docs and constraints.
3. Installs the wheel into a new environment. There `tubelet --version` and `tubelet --help` must answer, the latter
   without importing torch. `--no-deps` takes the dependencies from the environment that runs this script.

What follows by hand is in CONTRIBUTING.md: tag the commit, upload with twine.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IN_WHEEL = ("tubelet/py.typed", "tubelet/view/templates/")
IN_SOURCE = ("tests/", "docs/", "constraints.txt", "CHANGELOG.md", "LICENSE", "mkdocs.yml")
IMPORTS_TORCH = "import sys, tubelet.cli; sys.exit('torch' in sys.modules)"


def run(*words: object, **options: object) -> str:
    """A command's output; one that fails ends the script."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))} failed:\n{done.stdout}{done.stderr}")
    return str(done.stdout)


def build(out: Path) -> tuple[Path, Path]:
    """The source distribution and the wheel that is built from it."""
    out.mkdir(parents=True, exist_ok=True)
    code = "import sys, setuptools.build_meta as backend; print(backend.{hook}(sys.argv[1]))"
    with tempfile.TemporaryDirectory() as folder:
        for name in run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).splitlines():
            if (ROOT / name).exists():
                Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, Path(folder, name))
        source = out / run(sys.executable, "-c", code.format(hook="build_sdist"), out.resolve(), cwd=folder).split()[-1]
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(source) as archive:
            archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.4 and later have it
            archive.extractall(folder)
        (unpacked,) = Path(folder).iterdir()
        wheel = run(sys.executable, "-c", code.format(hook="build_wheel"), out.resolve(), cwd=unpacked).split()[-1]
    return source, out / wheel


def check_content(source: Path, wheel: Path) -> None:
    """Exit with an error if the version is wrong or a file is missing."""
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    newest = re.search(r"^## \[?(\d[\w.]*)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    if newest is None or newest[1] != version:
        sys.exit(f"CHANGELOG.md: the newest version is {newest and newest[1]}, pyproject.toml has {version}")
    with zipfile.ZipFile(wheel) as archive:
        in_wheel = archive.namelist()
    with tarfile.open(source) as archive:
        in_source = [name.partition("/")[2] for name in archive.getnames()]
    for path, names, expected in ((wheel, in_wheel, IN_WHEEL), (source, in_source, IN_SOURCE)):
        for start in expected:
            if not any(name.startswith(start) for name in names):
                sys.exit(f"{path.name}: has no {start}")
    if strange := {name.split("/")[0] for name in in_wheel} - {"tubelet"} - {f"tubelet-{version}.dist-info"}:
        sys.exit(f"{wheel.name}: installs {', '.join(sorted(strange))} in addition to the package")


def try_wheel(wheel: Path, with_dependencies: bool) -> None:
    """Install the wheel into an empty environment and run its command there."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "venv", *([] if with_dependencies else ["--without-pip"]), folder)
        python, command = Path(folder, "bin", "python"), Path(folder, "bin", "tubelet")
        if with_dependencies:
            run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel)
        else:
            run(
                sys.executable,
                "-m",
                "pip",
                "--python",
                python,
                "install",
                "--quiet",
                "--no-deps",
                "--no-compile",
                wheel,
            )
            packages = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
            (packages / "outer.pth").write_text("\n".join(_packages()) + "\n")
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        options = {"cwd": folder, "env": environment}
        print(run(command, "--version", **options).strip())
        assert "usage: tubelet" in run(command, "--help", **options)
        run(python, "-c", IMPORTS_TORCH, **options)
        where = run(python, "-c", "import tubelet; print(tubelet.__file__)", **options)
        if not where.startswith(str(Path(folder).resolve())):
            sys.exit(f"the environment imports {where.strip()}, not the wheel's package")


def _packages() -> list[str]:
    """Package folders of this environment, including those that its .pth files add."""
    own = Path(sysconfig.get_path("purelib"))
    return [str(own), *(entry for entry in sys.path if entry.endswith("site-packages") and Path(entry) != own)]


def main() -> None:
    """Build the files, check their contents and test the wheel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "dist", help="folder of the two files")
    parser.add_argument("--no-deps", action="store_true", help="take dependencies from this environment")
    args = parser.parse_args()
    source, wheel = build(args.out)
    check_content(source, wheel)
    try_wheel(wheel, not args.no_deps)
    print(source, wheel, sep="\n")


if __name__ == "__main__":
    main()
