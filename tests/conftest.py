import os
from pathlib import Path

# As the command line does, and for the same reason: test processes share the cores.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
# Tests run side by side, one process a core, and so do the commands that they start.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest


@pytest.fixture(scope="session")
def sample_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small sample set with ground truth: 24 clips of 8 frames and 8 images at 64 px."""
    from tubelet.data.sample import write_sample_data

    root = tmp_path_factory.mktemp("sample") / "set"
    write_sample_data(root, clips=24, images=8, size=64, frames=8, seed=0, workers=1)
    return root
