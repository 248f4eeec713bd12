import gc
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

# As the command line does, and for the same reason: test processes share the cores.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
# Tests run side by side, in more processes than there are cores, and so do the commands that they start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# One process compiles; a pool of compilers would import PyTorch in each.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# The other tests expect a CPU's rounding, and several processes of them would share one GPU. Set even where a scheduler
# has set it, and before PyTorch is loaded; the commands that tests start inherit it.
CUDA_REQUESTED = os.environ.get("TUBELET_TEST_CUDA") == "1"
if not CUDA_REQUESTED:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

if TYPE_CHECKING:
    from tests.helpers.browser import Browser

pytest_plugins = ("tests.helpers.leaks",)


def pytest_xdist_auto_num_workers() -> int:
    """Three processes for two cores: tests that wait for the processes they start leave a core idle."""
    return max(1, 3 * (os.cpu_count() or 1) // 2)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Import without collections of garbage, a third of the time, and leave what was imported out of later ones."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 20, 20)  # graphs of PyTorch are many objects and little garbage
        gc.enable()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests of a CUDA device where there is none, or none was requested."""
    if item.get_closest_marker("gpu") is None:
        return
    if not CUDA_REQUESTED:
        pytest.skip("CUDA devices are hidden from the tests unless they are run by `make test-cuda`")
    import torch

    if not torch.cuda.is_available():
        pytest.skip(f"torch {torch.__version__} finds no CUDA device on this machine")


@pytest.fixture(scope="session")
def sample_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sample set with ground truth: 24 clips of 8 frames and 6 images at 64 px. No test changes it."""
    from tubelet.sample_data import write_sample_data

    root = shared_folder(tmp_path_factory) / "sample"
    with FileLock(f"{root}.lock"):
        if not root.exists():
            write_sample_data(root, clips=24, images=6, size=64, frames=8, seed=0, workers=1)
    return root


@pytest.fixture(scope="session")
def labeled_set(sample_set: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample set with six long videos and label tables, in the folder `labels`. No test changes it."""
    from tubelet.sample_data import write_long_videos

    root = shared_folder(tmp_path_factory) / "labeled"
    with FileLock(f"{root}.lock"):
        if not (root / "labels").exists():
            shutil.copytree(sample_set, root, dirs_exist_ok=True)
            write_long_videos(root, 6)
    return root


@pytest.fixture(scope="session")
def shared_browser() -> "Iterator[Browser]":
    """A browser for all tests of a process: one takes a second of processor time to start."""
    from tests.helpers.browser import Browser

    with Browser() as browser:
        yield browser


@pytest.fixture
def browser(shared_browser: "Browser") -> "Iterator[Browser]":
    """A page of a browser; a test fails if a page had an error, or asked a network for anything."""
    shared_browser.errors.clear()
    yield shared_browser
    assert shared_browser.errors == []


def shared_folder(factory: pytest.TempPathFactory) -> Path:
    """A folder of this session that all its processes share, for what takes long to make."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
