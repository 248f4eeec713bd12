"""What pyproject.toml claims to work with is what the files of constraints install."""

import tomllib
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools.matrix import EXTRAS, constraints, torch_bounds

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUN_WITH_OLDEST = ("sample", "fp8", "lora", "map", "export", "stacks", "s3", "test")


def pinned(name: str) -> dict[str, Version]:
    lines = [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]
    pairs = [line.split("==") for line in lines]
    return {canonicalize_name(package): Version(version) for package, version in pairs}


def requirements(*extras: str) -> list[Requirement]:
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    return [Requirement(line) for lines in lists for line in lines]


def lower_bound(requirement: Requirement) -> Version:
    (bound,) = (spec.version for spec in requirement.specifier if spec.operator == ">=")
    return Version(bound)


def test_the_oldest_versions_that_are_installed_are_the_lower_bounds():
    oldest = pinned("constraints-oldest.txt")
    bounds = {canonicalize_name(r.name): lower_bound(r) for r in requirements(*RUN_WITH_OLDEST)}
    torch = canonicalize_name("torch")
    assert oldest.pop(torch) >= bounds.pop(torch)
    assert oldest == bounds


def test_pinned_versions_are_within_the_bounds():
    versions = pinned("constraints.txt")
    for requirement in requirements(*PROJECT["optional-dependencies"]):
        name = canonicalize_name(requirement.name)
        if name != "tubelet":
            assert requirement.specifier.contains(versions[name]), requirement


def test_pinned_versions_are_for_the_oldest_python_too():
    oldest = lower_bound(Requirement(f"python{PROJECT['requires-python']}")).base_version + ".0"
    versions = pinned("constraints.txt")
    checked = [d for d in distributions() if versions.get(canonicalize_name(d.name)) == Version(d.version)]
    assert len(checked) > 20
    assert [d.name for d in checked if not SpecifierSet(d.metadata["Requires-Python"] or "").contains(oldest)] == []


def test_the_matrix_installs_the_extras_that_are_compared_here():
    assert tuple(EXTRAS.split(",")) == RUN_WITH_OLDEST


def test_cells_of_the_matrix_replace_torch_and_nothing_else_that_is_pinned(tmp_path):
    for versions, requirement in zip(("torch-oldest", "torch-newest"), torch_bounds(), strict=True):
        option, file = constraints(versions, tmp_path)
        lines = Path(file).read_text().splitlines()
        assert option == "-c" and requirement in lines
        assert not any(line.startswith("torch==2.13") for line in lines) and "numpy==2.4.6" in lines
