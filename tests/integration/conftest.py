from pathlib import Path

import pytest

from tests.helpers.media import write_image, write_video


@pytest.fixture(scope="session")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small collection that no test changes: five videos and three images."""
    folder = tmp_path_factory.mktemp("media")
    for i in range(5):
        write_video(folder / f"{i}.mp4", frames=24)
    for i in range(3):
        write_image(folder / f"{i}.png")
    return folder
