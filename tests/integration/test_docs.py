"""Every command that the documentation shows is run."""

import re
import shlex
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from filelock import FileLock

from tests.conftest import shared_folder
from tests.helpers.commands import run_call, run_code, run_module, run_tubelet
from tests.helpers.launcher import torchrun
from tests.helpers.media import write_image, write_video
from tests.helpers.training import NARROW_PICO, processes
from tubelet.config.model import MODELS
from tubelet.heads.head_file import get_network, network_names

ROOT = Path(__file__).parents[2]
SAMPLE_SET = ["--clips", "24", "--size", "64", "--frames", "8"]  # that of the fixture `sample_set`
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page, language):
    """The lines of a page's code blocks of one language, continued lines joined, comments left out."""
    blocks = re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].strip() for line in lines if line.strip() and not line.startswith("#")]


@pytest.fixture
def workplace(tmp_path):
    """A folder with what a page's commands expect to find: a few videos, and TIFF stacks of 12 bits."""
    (tmp_path / "videos").mkdir()
    for i in range(3):
        write_video(tmp_path / "videos" / f"{i}.mp4", frames=48)
        write_image(tmp_path / "videos" / f"{i}.jpg")
    (tmp_path / "cells").mkdir()
    for i in range(2):
        tifffile.imwrite(
            tmp_path / "cells" / f"{i}.tif", np.random.default_rng(i).integers(0, 4096, (16, 64, 64), np.uint16)
        )
    for part in ("tests", "benchmarks"):
        (tmp_path / part).symlink_to(ROOT / part)
    return tmp_path


@pytest.fixture
def quick_commands(monkeypatch):
    """A vit-pico of two narrow blocks, heads of a few steps, forked sides of benchmarks: no result is measured."""
    monkeypatch.setitem(MODELS, "vit-pico", lambda: NARROW_PICO)
    monkeypatch.setattr("benchmarks.measure.get_context", lambda method: processes)
    monkeypatch.setattr("benchmarks.measure.product_shape", lambda device, width: (64, 64, 64))
    for name in network_names():
        network = get_network(name)
        if network.recipe is not None:
            monkeypatch.setattr(network, "recipe", replace(network.recipe, epochs=1, least_steps=8))


@pytest.fixture
def rendered(sample_set, tmp_path_factory):
    """A function that puts a sample set where a command is about to write it.

    The command leaves an existing set of the same parameters as it is and adds to it, so that the engine is not started
    for each page.
    """

    def put(folder, rest):
        made = sample_set
        if rest[: len(SAMPLE_SET)] != SAMPLE_SET:
            made = shared_folder(tmp_path_factory) / "-".join(["set", *rest])
            with FileLock(f"{made}.lock"):
                if not made.exists():
                    assert run_tubelet("sample-data", made, *rest).returncode == 0
        shutil.copytree(made, folder)

    return put


def run_line(words, workplace, rendered):
    """Run a line of a page, in this process. None if there is no such program here."""
    match words:
        case ["tubelet", "sample-data", folder, *rest]:
            rendered(workplace / folder, rest)
            return run_tubelet(*words[1:], cwd=workplace)
        case ["tubelet", *rest]:
            return run_tubelet(*rest, cwd=workplace)
        case ["python", "-m", module, *rest]:
            return run_module(module, *rest, cwd=workplace)
        case ["torchrun", *rest]:
            return run_call(["torchrun"], lambda: torchrun(rest, workplace), cwd=workplace)
    return None


def test_pages_show_commands():
    assert sum(len(commands(page, "bash")) for page in PAGES) >= 8


@pytest.mark.docs
@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_of_a_page_work_in_their_order_and_then_its_python(page, workplace, quick_commands, rendered):
    for name, text in re.findall(r"```yaml\n# (\S+)\n(.*?)```", page.read_text(), flags=re.DOTALL):
        (workplace / name).write_text(text)
    for name, text in re.findall(r'```csv title="(\S+)"\n(.*?)```', page.read_text(), flags=re.DOTALL):
        (workplace / name).write_text(text)
    for line in commands(page, "bash"):
        words = shlex.split(line)
        if words[0] == "make":
            # The test suite itself is `make test`, and the demo takes its minutes: here they must at least exist.
            assert subprocess.run(["make", "-n", words[1]], cwd=ROOT, capture_output=True, check=False).returncode == 0
            continue
        if words[0] in ("git", "cd"):
            continue
        done = run_line(words, workplace, rendered)
        assert done is not None, f"{page.name} shows a command that is not tested: {line}"
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL))
    done = run_code(code, cwd=workplace)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_images_of_a_page_exist(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
