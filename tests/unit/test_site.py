"""The documentation site builds strictly, and the public names are documented."""

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import tubelet

ROOT = Path(__file__).parents[2]


def public_functions():
    """(qualified name, function) of what `tubelet` exports and of the public methods of exported classes."""
    for name in tubelet.__all__:
        value = getattr(tubelet, name)
        if inspect.isclass(value):
            for member, method in inspect.getmembers(value, inspect.isroutine):
                if not member.startswith("_") and (getattr(method, "__module__", None) or "").startswith("tubelet"):
                    yield f"{name}.{member}", method
        elif callable(value):
            yield name, value


def test_images_are_small_and_on_a_page():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = {
        (page.parent / link).resolve()
        for page in pages
        for link in re.findall(r"!\[[^]]*\]\(([^):]+)\)", page.read_text())
    }
    assert shown == {path.resolve() for path in (ROOT / "docs" / "images").iterdir()}
    moving = {path for path in shown if getattr(Image.open(path), "n_frames", 1) > 1}
    assert len(moving) == 1 and all(path.stat().st_size < (2e6 if path in moving else 150e3) for path in shown)


def test_every_public_name_has_a_docstring():
    objects = [(name, getattr(tubelet, name)) for name in tubelet.__all__ if not name.startswith("__")]
    missing = [name for name, value in [*objects, *public_functions()] if not inspect.getdoc(value)]
    assert not missing


def test_docstrings_of_public_functions_describe_the_parameters_that_they_have():
    for name, function in public_functions():
        section = re.search(r"Args:\n(.*?)(\n\n|\Z)", inspect.getdoc(function) or "", flags=re.DOTALL)
        if section:
            described = set(re.findall(r"^    \**(\w+)(?: \([^)]*\))?:", section[1], flags=re.MULTILINE))
            assert described <= set(inspect.signature(function).parameters), name


def test_pages_that_the_source_names_exist():
    for file in (ROOT / "src").rglob("*.py"):
        for page in re.findall(r"docs/[\w/-]+\.md", file.read_text()):
            assert (ROOT / page).exists(), f"{file} names {page}"


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


# The files of docs/extend.md are those that a reader adds.
@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "extend.md"], ids=lambda page: page.name)
def test_python_files_that_a_page_names_exist(page):
    files = [
        f"/{path.relative_to(ROOT)}"
        for part in ("src", "tests", "benchmarks", "examples", "tools")
        for path in (ROOT / part).rglob("*.py")
    ]
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for name in re.findall(r"`((?:[\w-]+/)*[\w-]+\.py)`", text):
        assert any(file.endswith(f"/{name}") for file in files), f"{page.name} names {name}"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs", reason="mkdocs is absent: install the extra docs")
    pytest.importorskip("mkdocstrings", reason="mkdocstrings is absent: install the extra docs")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.docs
def test_the_site_builds_without_a_warning_and_has_every_public_name(site):
    page = (site / "reference" / "python.html").read_text()
    missing = [name for name in tubelet.__all__ if not name.startswith("__") and f'id="tubelet.{name}"' not in page]
    assert not missing
    assert (site / "reference" / "cli.html").read_text().count("usage: tubelet") >= 12


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("page", ["index.html", "reference/python.html"])
def test_pages_are_drawn_by_a_browser_without_an_error_of_a_script(page, site, browser, tmp_path):
    browser.open(site / page, width=1280, height=1600)
    with Image.open(browser.screenshot(tmp_path / "page.png")) as image:
        assert len(image.convert("RGB").getcolors(2**24)) > 100
