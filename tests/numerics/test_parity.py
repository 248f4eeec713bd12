from pathlib import Path

import pytest

from tests.numerics import check_parity

FOLDERS = [Path(__file__).parent / name for name in ("teacher_vit", "distilled_vit")]
CASES = [
    pytest.param(case, id=f"{build.__name__}-{folder.name}-{case.name}")
    for build in (check_parity.package, check_parity.specification)
    for folder in FOLDERS
    for case in check_parity.run(folder, build)
]


@pytest.mark.parametrize("case", CASES)
def test_output_equals_that_of_the_release(case):
    assert case.error <= case.bound, f"{case.name} is off by {case.error}, allowed {case.bound}"
