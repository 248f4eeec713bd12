"""One loader for every layout, which never loads a part of a file."""

import json
from pathlib import Path

import pytest
import torch

import tubelet
from tests.helpers.commands import run_tubelet
from tests.numerics import reference
from tubelet.checkpoint.vjepa2_1 import expected_state, read_released, write_released
from tubelet.config import ModelConfig, PredictorConfig, vit_b, vit_l
from tubelet.errors import TubeletError
from tubelet.vjepa import VJEPA

FIXTURES = Path(__file__).parents[1] / "numerics"
TINY = {"heads": 2, "predictor_heads": 2, "device": "cpu", "dtype": torch.float32}
CONFIG = ModelConfig(
    width=48, depth=4, heads=2, levels=(0, 1, 2, 3), patch_size=8, predictor=PredictorConfig(width=24, depth=2, heads=2)
)


@pytest.fixture
def released_file(tmp_path):
    """A file in the released layout, and a function that rewrites it after a change to one of its dictionaries."""
    torch.manual_seed(0)
    path = tmp_path / "tiny.pt"
    reference.save(reference.System(CONFIG), path)

    def change(key, edit):
        file = torch.load(path, weights_only=True)
        edit(file[key])
        torch.save(file, path)
        return path

    return path, change


@pytest.mark.parametrize("folder", ["teacher_vit", "distilled_vit"])
@pytest.mark.parametrize("part", ["teacher", "student"])
def test_a_released_file_gives_the_encoder_that_was_asked_for(folder, part):
    path = FIXTURES / folder / "checkpoint.pt"
    model = tubelet.load(path, encoder=part, **TINY)
    released = read_released(path, heads=2, predictor_heads=2)
    for name, value in getattr(released, part).items():
        assert torch.equal(model.state_dict()[name], value)
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert model.encoder_name == part and model.predictor is None


def test_the_predictor_comes_along_where_it_is_asked_for(released_file):
    model = tubelet.load(released_file[0], with_predictor=True, **TINY)
    assert model.predictor.config.predictor.width == 24


def test_own_to_released_and_back_is_the_same_to_the_bit(tmp_path):
    torch.manual_seed(1)
    for levels in (None, 1):
        config = ModelConfig(
            width=48, depth=4, heads=2, levels=(0, 1, 2, 3), output_levels=levels, predictor=CONFIG.predictor
        )
        model = VJEPA(config)
        torch.nn.init.normal_(model.predictor.mask_tokens)
        parts = {part: getattr(model, part).state_dict() for part in ("student", "predictor", "teacher")}
        write_released(tmp_path / "own.pt", config, parts)
        read = read_released(tmp_path / "own.pt", heads=2, predictor_heads=2)
        for part, state in parts.items():
            assert state.keys() == getattr(read, part).keys()
            assert all(torch.equal(value, getattr(read, part)[name]) for name, value in state.items())


def remove(name):
    return lambda state: state.pop(name)


def rename(name):
    def edit(state):
        state[name + "_old"] = state.pop(name)

    return edit


def transpose(name):
    def edit(state):
        state[name] = state[name].mT.contiguous() if state[name].dim() > 1 else state[name][:-1].clone()

    return edit


@pytest.mark.parametrize("damage", [remove, rename, transpose])
@pytest.mark.parametrize(
    "name",
    [
        "patch_embed.proj.weight",
        "patch_embed_img.proj.bias",
        "blocks.0.attn.qkv.weight",
        "blocks.2.attn.qkv.weight",
        "blocks.1.mlp.fc1.weight",
        "blocks.0.mlp.fc1.bias",
        "blocks.3.norm1.weight",
        "norms_block.2.bias",
    ],
)
def test_a_missing_renamed_or_transposed_tensor_is_named(released_file, damage, name):
    if damage is transpose and name == "patch_embed.proj.weight":
        pytest.skip("its last two sides are alike")
    _, change = released_file
    path = change("target_encoder", damage("module.backbone." + name))
    with pytest.raises(TubeletError) as error:
        tubelet.load(path, **TINY)
    assert name in str(error.value)
    assert "tiny.pt" in str(error.value)


def to_dtype(dtype):
    def edit(state):
        name = "module.backbone.blocks.0.norm1.bias"
        state[name] = state[name].to(dtype)

    return edit


def under_another_prefix(state):
    state["backbone.norms_block.0.bias"] = torch.ones(48)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (to_dtype(torch.int64), r"blocks\.0\.norm1\.bias holds torch\.int64, expected floats"),
        (to_dtype(torch.complex64), r"blocks\.0\.norm1\.bias holds torch\.complex64, expected floats"),
        (under_another_prefix, "'target_encoder' has tensors whose names differ only"),
    ],
)
def test_numbers_that_are_no_floats_and_names_that_are_there_twice_are_refused(released_file, damage, words):
    path = released_file[1]("target_encoder", damage)
    with pytest.raises(TubeletError, match=words):
        tubelet.load(path, **TINY)


def test_a_state_dictionary_of_parameters_is_one_of_tensors(released_file):
    path, change = released_file
    expected = tubelet.load(path, **TINY).model_id
    change("target_encoder", lambda state: state.update({k: torch.nn.Parameter(v) for k, v in state.items()}))
    model = tubelet.load(path, **TINY)
    assert model.model_id == expected and not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtpye": torch.float32}, r"no option 'dtpye' \(nearest: 'dtype'\)"),
        ({"revison": "v1"}, r"no option 'revison' \(nearest: 'revision'\)"),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16', expected"),
        ({"dtype": torch.uint8}, "dtype is torch.uint8, expected"),
        ({"device": "cpuu"}, "device is 'cpuu', which is not available here"),
    ],
)
def test_an_option_that_is_none_is_refused_before_anything_is_read(options, words):
    with pytest.raises(TubeletError, match=words):
        tubelet.load("there/is/no/such.pt", **options)


@pytest.mark.parametrize("name", ["predictor_embed.0.weight", "predictor_proj_context.bias", "mask_tokens.0"])
def test_the_same_of_the_predictor(released_file, name):
    _, change = released_file
    path = change("predictor", remove("module.backbone." + name))
    tubelet.load(path, **TINY)
    with pytest.raises(TubeletError, match="predictor") as error:
        tubelet.load(path, with_predictor=True, **TINY)
    assert name in str(error.value) or name.startswith("mask_tokens")


def random_release(path, config, key):
    """A file of these sizes, its teacher under `key`. Its tensors share few random values, which are stored once."""
    values = torch.rand(6_000_000, generator=torch.Generator().manual_seed(0)) / 10 - 0.05
    encoder, predictor = (
        {
            f"module.backbone.{name}": values[i : i + value.numel()].view(value.shape)
            for i, (name, value) in enumerate(expected_state(config, part).items())
        }
        for part in ("teacher", "predictor")
    )
    torch.save({key: encoder, "predictor": predictor}, path)


@pytest.mark.slow
def test_a_file_of_the_true_size_loads_by_its_released_name(tmp_path, monkeypatch):
    from tubelet.checkpoint.registry import RELEASED

    config, name = vit_l(), "vjepa2.1-vitl16-384"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "tubelet" / "released"
    folder.mkdir(parents=True)
    random_release(folder / RELEASED[name], config, "ema_encoder")
    model = tubelet.load(name, device="cpu", dtype=torch.float32)
    by_path = tubelet.load(folder / RELEASED[name], device="cpu", dtype=torch.float32)  # mapped, not read
    assert (model.config.width, model.config.heads, model.config.levels) == (config.width, config.heads, config.levels)
    assert model.model_id.startswith(f"{name}-teacher-")
    assert model.model_id == by_path.model_id
    assert model.encode(torch.zeros(1, 3, 2, 32, 32), resize=None).tokens.shape == (1, 4, config.width)


def test_torch_hubs_names_and_file_names_are_those_of_released_models(tmp_path, monkeypatch):
    from tubelet.checkpoint.registry import HUB_NAMES, RELEASED, released_name

    assert set(HUB_NAMES.values()) == set(RELEASED)
    assert released_name("vjepa2_1_vitl_dist_vitG_384.pt") == "vjepa2.1-vitl16-384"
    assert released_name("videos") is None
    monkeypatch.setenv("TUBELET_CACHE", str(tmp_path))
    (tmp_path / "released").mkdir()
    random_release(tmp_path / "released" / RELEASED["vjepa2.1-vitb16-384"], vit_b(), "ema_encoder")
    options = {"device": "cpu", "dtype": torch.float32}
    model = tubelet.Backbone.from_pretrained("vjepa2_1_vit_base_384", **options)
    assert model.model_id == tubelet.load("vjepa2.1-vitb16-384", **options).model_id
    assert model.config.width == vit_b().width and model.config.levels == vit_b().levels
    monkeypatch.chdir(tmp_path)
    found = json.loads(run_tubelet("info", "--json").stdout)
    assert found["released models"] == {
        "vjepa2.1-vitb16-384": str(tmp_path / "released" / RELEASED["vjepa2.1-vitb16-384"])
    }
    assert found["cache"][str(tmp_path / "released")].endswith(" MB")


def test_a_file_that_lost_its_last_block_is_no_shallower_model(tmp_path):
    config = ModelConfig(width=128, depth=3, heads=4, levels=(0, 1, 2), patch_size=8)
    random_release(tmp_path / "short.pt", config, "target_encoder")
    with pytest.raises(TubeletError, match="3 blocks of width 128"):
        tubelet.load(tmp_path / "short.pt")


def test_a_released_name_without_its_file_names_which_file_and_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(TubeletError) as error:
        tubelet.load("vjepa2.1-vitg16-384")
    for words in ("vjepa2_1_vitg_384.pt", str(tmp_path), "https://dl.fbaipublicfiles.com/vjepa2/vjepa2_1_vitg_384.pt"):
        assert words in str(error.value)


def test_a_path_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TubeletError, match="runs/nope: no such file or directory; not looked up on the Hub"):
        tubelet.load("runs/nope")


def test_a_misspelled_name_gets_the_nearest_one():
    with pytest.raises(TubeletError, match=r"nearest released name: 'vjepa2\.1-vit[bl]16-384'"):
        tubelet.load("vjepa2.1-vit16-384")


def test_a_wrong_hash_is_refused(released_file):
    with pytest.raises(TubeletError, match="sha256 is"):
        tubelet.load(released_file[0], sha256="0" * 64, **TINY)


def test_an_empty_folder_and_an_unknown_part_name_what_was_expected(tmp_path):
    with pytest.raises(TubeletError, match="expected checkpoints/step-"):
        tubelet.load(tmp_path)
    with pytest.raises(TubeletError, match="expected 'teacher' or 'student'"):
        tubelet.load(tmp_path, encoder="Teacher")
