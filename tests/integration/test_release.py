"""The release procedure builds both distributions, and the wheel works in an empty environment."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a release is made from a clone")
def test_wheel_and_source_distribution_are_built_and_the_wheel_is_installed_and_answers(tmp_path):
    command = [sys.executable, str(ROOT / "tools" / "release.py"), "--out", str(tmp_path), "--no-deps"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".gz", ".whl"]
