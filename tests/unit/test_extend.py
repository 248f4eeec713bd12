"""The examples of docs/extend.md: each runs, and is as short as the page promises."""

import re
from pathlib import Path

import pytest

from tests.helpers.commands import run_code

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)


def test_examples_run_in_their_order(tmp_path):
    done = run_code("\n".join(EXAMPLES), cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_an_example_has_at_most_60_lines(number):
    assert len(EXAMPLES[number].splitlines()) <= 60
