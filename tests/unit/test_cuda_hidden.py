"""Tests, and the commands that they start, see no CUDA device unless one is requested."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("requested", "visible"), [("", ""), ("1", "0")])
def test_the_test_session_hides_cuda_devices_before_torch_is_loaded(requested, visible):
    code = "import os, sys, tests.conftest; print(os.environ['CUDA_VISIBLE_DEVICES'], 'torch' in sys.modules)"
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "0", "TUBELET_TEST_CUDA": requested}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == f"{visible} False\n", done.stderr
