"""The notebook runs from its first cell to its last, on a video and a model of this test."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

from tests.helpers.media import write_video
from tests.helpers.training import tiny_config
from tubelet import Backbone

NOTEBOOK = Path(__file__).parents[2] / "examples" / "video_to_features.ipynb"


@pytest.fixture
def agg():
    """Figures that no window shows."""
    plt.switch_backend("agg")


def test_notebook_turns_a_video_into_images_of_its_features(tmp_path, agg):
    Backbone(tiny_config(tmp_path).model).save_pretrained(tmp_path / "encoder")
    write_video(tmp_path / "video.mp4", frames=240)
    names = {"video": str(tmp_path / "video.mp4"), "model_name": str(tmp_path / "encoder"), "seconds": 4}
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells[0]["metadata"]["tags"] == ["parameters"]
    assert set(names) == {line.split(" = ")[0] for line in cells[0]["source"]}
    assert not any(cell["outputs"] for cell in cells)
    drawn = []
    for cell in cells[1:]:
        exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
        drawn.append(sum(len(axis.images) for number in plt.get_fignums() for axis in plt.figure(number).axes))
        plt.close("all")  # as a notebook does after each cell
    steps, columns = len(names["times"]), len(names["shown"])
    assert names["grid"].shape[0] == names["frames"].shape[0] == steps
    assert drawn == [0, 0, 2 * columns, 2 * columns, 1]
    assert np.isfinite(names["colors"]).all()
    assert names["similarity"][names["step"], names["row"], names["column"]] == pytest.approx(1, abs=1e-5)
    assert (names["moments"] @ names["moments"].T).diagonal() == pytest.approx(np.ones(steps), abs=1e-5)
