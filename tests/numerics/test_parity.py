"""Outputs equal those that the reference computed, for the package and for the executable specification."""

from pathlib import Path

import pytest

from tests.numerics import check_parity

FOLDERS = [Path(__file__).parent / name for name in ("teacher_vit", "distilled_vit")]


@pytest.mark.parametrize("build", [check_parity.package, check_parity.specification], ids=lambda build: build.__name__)
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
@pytest.mark.slow
def test_every_case_is_within_its_bound(folder, build):
    cases = check_parity.run(folder, build)
    assert len(cases) >= 24
    over = [
        f"{case.name}: off by {case.error:.2e}, allowed {case.bound:.0e}"
        for case in cases
        if not case.error <= case.bound
    ]
    assert not over
