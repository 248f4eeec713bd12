from pathlib import Path

import pytest
import torch

from tubelet.checkpoint.run import load_vjepa
from tubelet.checkpoint.state_dict import load_strict
from tubelet.checkpoint.vjepa2_1 import read_released
from tubelet.errors import TubeletError
from tubelet.model.encoder import Encoder

RELEASED = Path(__file__).parents[1] / "numerics" / "teacher_vit" / "checkpoint.pt"


def test_a_missing_an_unexpected_and_a_misshapen_tensor_are_all_listed():
    released = read_released(RELEASED, heads=2, predictor_heads=2)
    encoder = Encoder(released.config)
    state = dict(released.student)
    del state["norms.0.weight"]
    state["extra"] = torch.zeros(3)
    state["norms.1.bias"] = torch.zeros(5)
    with pytest.raises(TubeletError) as error:
        load_strict(encoder, state, "encoder")
    for words in (
        "missing norms.0.weight (32,)",
        "unexpected extra (3,)",
        "norms.1.bias has shape (5,), expected (32,)",
    ):
        assert words in str(error.value)


def test_a_width_outside_the_family_asks_for_its_heads():
    with pytest.raises(TubeletError, match="heads="):
        read_released(RELEASED)


def test_a_file_that_would_run_code_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"encoder": Attack(), "predictor": {}, "target_encoder": {}}, tmp_path / "evil.pt")
    with pytest.raises(TubeletError, match="contains pickled code"):
        read_released(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_a_run_folder_without_checkpoints_names_what_was_expected(tmp_path):
    with pytest.raises(TubeletError, match="expected checkpoints/step-"):
        load_vjepa(tmp_path)
