"""MkDocs hooks: generate the command-line reference from the --help output of each command."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CLI_PAGE = "reference/cli.md"
CLI_MARK = "<!-- commands -->"
COLUMNS = 76


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Insert the help of every command into the command-line page."""
    return markdown.replace(CLI_MARK, _commands()) if page.file.src_uri == CLI_PAGE else markdown


def _commands() -> str:
    """A section of Markdown for each command, with its help as text."""
    names = _run("-c", "from tubelet.cli import COMMANDS; print(*COMMANDS, sep='\\n')").split()
    with ThreadPoolExecutor(2) as pool:
        helps = pool.map(lambda name: _run("-m", "tubelet", name, "--help"), names)
        return "\n".join(
            f"## tubelet {name}\n\n```text\n{text.strip()}\n```\n" for name, text in zip(names, helps, strict=True)
        )


def _run(*words: str) -> str:
    environment = os.environ | {"COLUMNS": str(COLUMNS), "NO_COLOR": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=True)
    return done.stdout
