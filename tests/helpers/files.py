"""Small files with given content."""

import json
from pathlib import Path


def put(path: Path, content: object = "") -> Path:
    """Write text, or anything else as JSON, and make the directories above; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path
