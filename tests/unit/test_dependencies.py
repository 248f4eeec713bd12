"""What pyproject.toml claims to work with is what the files of constraints install."""

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
RUN_WITH_OLDEST = ("sample", "fp8", "lora", "export", "s3", "test")


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


def test_the_makefile_installs_what_is_compared_here():
    extras = re.search(r"^test-oldest: EXTRAS := (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert extras and tuple(extras[1].split(",")) == RUN_WITH_OLDEST
