from pathlib import Path

import check_parity
import pytest

FOLDERS = ["teacher_vit", "distilled_vit"]
CASES = [(folder, case) for folder in FOLDERS for case in check_parity.run(Path(__file__).parent / folder)]


@pytest.mark.parametrize(("folder", "case"), CASES, ids=[f"{folder}-{case.name}" for folder, case in CASES])
def test_output_equals_the_reference(folder, case):
    assert case.error <= case.bound, f"{case.name} is off by {case.error}, allowed {case.bound}"
