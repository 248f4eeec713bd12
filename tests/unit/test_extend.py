"""The examples of docs/extend.md are as short as promised; `test_docs` runs them."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "extend.md"


def test_an_example_has_at_most_60_lines():
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert examples and max(len(example.splitlines()) for example in examples) <= 60
