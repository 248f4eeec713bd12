"""NaN and infinity: in weights, pixels, features and tables, found where they come in and named."""

import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import tubelet
from tests.helpers.media import indexed_image
from tubelet import cli
from tubelet.checkpoint.export import _difference
from tubelet.checkpoint.run import load_training_state, save_checkpoint, training_state
from tubelet.checkpoint.state_dict import require_finite
from tubelet.config import DataConfig, EmbedConfig, ModelConfig, PredictorConfig, TrainConfig
from tubelet.data.part_table import parts
from tubelet.embed.collection import embed_collection
from tubelet.embed.search import search
from tubelet.embed.table import FeatureTable, read_part, read_settings
from tubelet.errors import TubeletError
from tubelet.pretrained.backbone import Backbone
from tubelet.train.optim import build_optimizer
from tubelet.train.run_directory import RunDirectory
from tubelet.vjepa import VJEPA

SIZES = ModelConfig(
    width=24, depth=2, heads=2, levels=(0, 1), patch_size=8, predictor=PredictorConfig(width=24, depth=1, heads=2)
)
CPU = {"device": "cpu", "dtype": torch.float32}
TENSOR = "blocks.1.attention.qkv.weight"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for i in range(3):
        Image.fromarray(indexed_image(40 * i)).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    torch.manual_seed(0)
    model = Backbone(SIZES)
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    model.save_pretrained(path.parent)
    return path


def damaged(path, out, change, name=TENSOR):
    """A copy of an encoder with another value in one of its tensors."""
    tensors = load_file(path)
    change(tensors[name])
    with safe_open(path, framework="pt") as file:
        save_file(tensors, out, metadata=file.metadata())
    return out


@pytest.fixture(scope="module")
def diverged(encoder, images, tmp_path_factory):
    """A run and an encoder whose weights hold NaN."""
    folder = tmp_path_factory.mktemp("diverged")
    config = TrainConfig(model=SIZES, data=DataConfig(sources=(str(images),), image_size=32, frames=2), steps=1)
    model = VJEPA(SIZES)
    optimizer = build_optimizer(model, config.optim)
    for part in (model.student, model.teacher):
        part.state_dict()[TENSOR][0, :3] = math.nan
    RunDirectory(folder / "run", config, resume=False).restore(0, lambda row: None)
    save_checkpoint(folder / "run", 1, training_state(model, optimizer), config, keep=1)
    damaged(encoder, folder / "model.safetensors", lambda x: x.view(-1)[:3].fill_(math.nan))
    return folder


@pytest.mark.parametrize("model", ["run", "model.safetensors"])
@pytest.mark.parametrize(
    "command",
    [
        "convert MODEL OUT/a.safetensors",
        "convert MODEL OUT/a.pt",
        "convert MODEL OUT/hub",
        "convert MODEL OUT/a.pt2",
        "embed IMAGES --model MODEL --out OUT/table --image-size 32",
        "train IMAGES --init-from MODEL --out OUT/run --image-size 32 --frames 2 --batch-size 2 --steps 1",
        "distill IMAGES --teacher MODEL --out OUT/run --model vit-pico --patch-size 8 --image-size 32 --frames 2",
        "evaluate MODEL --data IMAGES --task knn",
        "report RUN --out OUT/page.html",
        "explain IMAGES/0.png --model RUN --out OUT/page.html",
    ],
)
def test_no_command_takes_weights_that_are_not_finite(model, command, diverged, images, tmp_path, monkeypatch, capsys):
    places = {"MODEL": diverged / model, "RUN": diverged / "run", "IMAGES": images, "OUT": tmp_path}
    for name, place in places.items():
        command = command.replace(name, str(place))
    monkeypatch.setattr(sys, "argv", ["tubelet", *command.split()])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    stderr = capsys.readouterr().err
    assert ended.value.code == 1
    assert "not finite (NaN or infinity): " in stderr and f"{TENSOR}, 3 of 1728 values" in stderr
    assert "diverged or the file is damaged; use another checkpoint" in stderr
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".safetensors", ".pt", ".html", ".parquet")]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_one_value_of_any_kind_is_found_in_any_type_and_place(value, dtype):
    tensor = torch.zeros(100, 7, dtype=dtype)
    require_finite({"x": tensor, "empty": tensor[:0]}, "here")
    tensor[99, 6] = value
    with pytest.raises(TubeletError, match=r"^here: not finite \(NaN or infinity\): x, 1 of 700 values: the training"):
        require_finite({"x": tensor}, "here")
    with pytest.raises(TubeletError, match="5, 1 of 700 values and 2 more tensors"):
        require_finite({str(i): tensor for i in range(1, 8)}, "here")


def test_moments_that_are_not_finite_are_not_resumed_from(images, tmp_path):
    config = TrainConfig(model=SIZES, data=DataConfig(sources=(str(images),)))
    model = VJEPA(SIZES)
    optimizer = build_optimizer(model, config.optim)
    for parameter in model.student.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moment = next(iter(optimizer.state.values()))["exp_avg"]
    moment.view(-1)[0] = math.inf
    path = save_checkpoint(tmp_path, 1, training_state(model, optimizer), config, keep=1)
    with pytest.raises(TubeletError, match=r"optimizer\.exp_avg\.student\.\S+, 1 of \d+ values"):
        load_training_state(path, model, optimizer)


def test_weights_that_a_narrower_type_cannot_hold_are_named(encoder, tmp_path):
    large = damaged(encoder, tmp_path / "large.safetensors", lambda x: x.view(-1)[:2].fill_(1e6))
    tubelet.load(large, device="cpu", dtype=torch.bfloat16)
    with pytest.raises(TubeletError, match=r"as float16, which ends at 65,504 .*qkv.weight, 2 of 1728 values"):
        tubelet.load(large, device="cpu", dtype=torch.float16)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("shape", [(32, 32, 3), (3, 4, 32, 32), (2, 3, 4, 32, 32)])
def test_pixels_that_are_not_finite_are_counted(value, shape, encoder):
    model = tubelet.load(encoder, **CPU)
    pixels = torch.rand(shape)
    pixels.view(-1)[-2:] = value
    for x in (pixels, pixels.numpy(), pixels.half()):
        with pytest.raises(TubeletError, match=rf"2 of {pixels.numel()} pixel values are not finite"):
            model.encode(x)
    with pytest.raises(TubeletError, match="too large for float32"):
        model.encode(torch.full(shape, 1e300, dtype=torch.float64), normalized=True)


def test_an_exported_graph_that_computes_nan_is_not_taken_for_right():
    def graph(pixels):
        return [torch.zeros(1), torch.zeros(1)]

    def run(pixels):
        return [torch.zeros(1), torch.tensor([math.nan])]

    assert math.isnan(_difference(graph, run, (1,)))


def test_files_whose_features_are_not_finite_are_bad_files_and_have_no_rows(encoder, images, tmp_path, caplog):
    # Finite, and above what float16 can hold once it is pooled.
    path = damaged(encoder, tmp_path / "m.safetensors", lambda x: x.fill_(1e6), "norms.1.weight")
    config = EmbedConfig(image_size=32, frames=2, workers=0, max_failed_fraction=1.0)
    made = embed_collection(tubelet.load(path, **CPU), [str(images)], tmp_path / "table", config)
    reported = [record.args[0] for record in caplog.records if record.msg == "bad file %s"]
    assert (made.rows, made.bad, parts(tmp_path / "table")) == (0, 3, [])
    assert sorted(file.path for file in reported) == [str(images / f"{i}.png") for i in range(3)]
    assert all(file.reason.startswith("features are not finite") for file in reported)
    with pytest.raises(TubeletError, match="3 of 3 files"):
        embed_collection(
            tubelet.load(path, **CPU), [str(images)], tmp_path / "t2", EmbedConfig(image_size=32, workers=0)
        )


def arrays(row):
    return {name: np.array(row[name], kind) for name, kind in (("times", np.float64), ("grid", np.int32))}


def test_rows_without_a_direction_hide_no_other_row_and_are_counted(encoder, images, tmp_path):
    model, table = tubelet.load(encoder, **CPU), tmp_path / "table"
    embed_collection(model, [str(images)], table, EmbedConfig(image_size=32, frames=2, workers=0))
    expected = search(table, images / "1.png", 3, model)
    (part,) = parts(table)
    (row, *_) = read_part(part, None).to_pylist()
    wrong = FeatureTable(table, read_settings(table))
    for i, value in enumerate((math.nan, math.inf, 0.0)):
        wrong.add([row | {"path": f"/wrong/{i}.png", "pooled": np.full(24, value, np.float16), **arrays(row)}])
    wrong.flush()
    for path in parts(table):  # whichever part comes first
        path.rename(path.with_name(f"part-{9 - int(path.stem[-1]):06d}.parquet"))
    with pytest.warns(UserWarning, match=r"3 of 6 rows have .* not ranked, the first of /wrong/0\.png; delete"):
        assert search(table, images / "1.png", 3, model) == expected
    for path in parts(table)[1:]:
        path.unlink()
    with pytest.warns(UserWarning, match="3 of 3 rows"):
        assert search(table, images / "1.png", 3, model) == []


def test_a_query_without_a_direction_is_refused(encoder, images, tmp_path):
    model, table = tubelet.load(encoder, **CPU), tmp_path / "table"
    embed_collection(model, [str(images)], table, EmbedConfig(image_size=32, frames=2, workers=0))
    with torch.no_grad():
        model.norms[1].weight.zero_()
        model.norms[1].bias.zero_()
    model._identified = (model._changes(), tubelet.load(encoder, **CPU).fingerprint)
    with pytest.raises(TubeletError, match=r"1\.png: features have no direction \(norm 0\.0\)"):
        search(table, images / "1.png", 3, model)
