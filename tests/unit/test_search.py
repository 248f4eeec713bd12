"""Nearest clips of tables whose parts hold what cannot be compared."""

import json
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tubelet.data.part_table import rows_to_table
from tubelet.embed.search import search
from tubelet.embed.table import FORMAT
from tubelet.errors import TubeletError

SETTINGS = {"format": FORMAT, "model": "m", "model_id": "m", "weights": "w", "image_size": 8, "frames": 2, "fps": 4.0}
SETTINGS |= {"stride_s": None, "dense": False, "levels": False}


def model(query):
    return SimpleNamespace(
        weights_id="w", model_id="m", encode=lambda *_, **__: SimpleNamespace(pooled=torch.tensor([query]))
    )


@pytest.fixture
def table(tmp_path):
    vectors = [[np.nan] * 4, [1, 0, 0, 0], [np.inf, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0]]
    rows = [
        {"path": f"{i}.png", "start_s": 0.0, "end_s": 1.0, "pooled": np.array(vector, np.float16)}
        for i, vector in enumerate(vectors)
    ]
    (tmp_path / "_settings.json").write_text(json.dumps(SETTINGS))
    pq.write_table(rows_to_table(rows, SETTINGS), tmp_path / "part-000000.parquet")
    return tmp_path


def test_rows_that_are_not_finite_hide_no_neighbors_and_are_counted(table):
    with pytest.warns(UserWarning, match="3 of 5 rows have features without a direction"):
        hits = search(table, "a.png", 3, model([1.0, 0.0, 0.0, 0.0]))
    assert [hit.path for hit in hits] == ["1.png", "4.png"] and hits[0].similarity == pytest.approx(1)


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ([np.nan] * 4, "have no direction .norm nan"),
        ([0.0] * 4, "have no direction .norm 0"),
        ([1.0] * 5, "vectors of 4 channels, expected 5 as of the model"),
    ],
)
def test_a_query_that_cannot_be_compared_is_refused(table, query, words):
    with pytest.raises(TubeletError, match=words):
        search(table, "a.png", 3, model(query))
