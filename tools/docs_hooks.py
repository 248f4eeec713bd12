"""MkDocs hooks: generate the command-line reference from the --help output of each command."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CLI_PAGE = "reference/cli.md"
CLI_MARK = "<!-- commands -->"
COLUMNS = 76
# In one process: the start of each takes longer than its help.
PRINT_HELPS = """
import contextlib, io, json, sys
from tubelet.cli import COMMANDS, main

helps = {}
for name in COMMANDS:
    sys.argv = ["tubelet", name, "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    helps[name] = out.getvalue()
print(json.dumps(helps))
"""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Insert the help of every command into the command-line page."""
    return markdown.replace(CLI_MARK, _commands()) if page.file.src_uri == CLI_PAGE else markdown


def _commands() -> str:
    """A section of Markdown for each command, with its help as text."""
    environment = os.environ | {"COLUMNS": str(COLUMNS), "NO_COLOR": "1", "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", PRINT_HELPS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return "\n".join(
        f"## tubelet {name}\n\n```text\n{text.strip()}\n```\n" for name, text in json.loads(done.stdout).items()
    )
