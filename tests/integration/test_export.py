"""An encoder as one graph: compiled, exported, and in another runtime."""

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.commands import run_tubelet
from tests.helpers.heads import tiny_encoder, tiny_head
from tests.helpers.media import indexed_image
from tubelet.checkpoint import export
from tubelet.checkpoint.frame_preprocessing import FramePreprocessing
from tubelet.checkpoint.weights import LoadSpec
from tubelet.config import ModelConfig
from tubelet.data.clips import resize_center_crop
from tubelet.errors import TubeletError
from tubelet.heads.head_export import export_head
from tubelet.io.overwrite_checks import check_output
from tubelet.model.encoder import Encoder
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.encoder_export import export_encoder
from tubelet.pretrained.load import load_unplaced

CONFIG = ModelConfig(width=48, depth=2, heads=2, levels=(0, 1), output_levels=1, patch_size=8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    Backbone(CONFIG).save_pretrained(folder / "tiny")
    return folder / "tiny"


@pytest.mark.slow
@pytest.mark.parametrize(("rope", "dtype"), [("2.1", torch.float32), ("2.0", torch.bfloat16)])
def test_the_encoder_compiles_without_a_graph_break(rope, dtype):
    torch._dynamo.reset()
    torch.manual_seed(0)
    encoder = Encoder(ModelConfig(width=24, depth=1, heads=2, levels=(0,), patch_size=8, rope=rope)).eval()
    encoder.to(dtype).requires_grad_(dtype == torch.float32)  # as of `tubelet.load`, on CPUs with bfloat16 too
    # Breaks are found while tracing, which is the same for every backend; this one does nothing else.
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    for shape in ((1, 3, 4, 32, 32), (2, 3, 1, 16, 24))[rope == "2.0" :]:  # they differ in the angles only
        pixels = torch.randn(shape, dtype=dtype)
        for ours, expected in zip(compiled(pixels), encoder(pixels), strict=True):
            torch.testing.assert_close(ours, expected)
    ids = torch.tensor([[0, 3, 5]])
    torch.testing.assert_close(compiled(pixels[:1], ids)[-1], encoder(pixels[:1], ids)[-1])


@pytest.mark.slow
def test_an_exported_file_computes_what_eager_does_at_other_shapes(saved, tmp_path):
    model = load_unplaced(saved, LoadSpec())
    message = export_encoder(model, tmp_path / "a.pt2", images=True)
    assert "over 3 shapes" in message and "tokens/s" in message
    assert (tmp_path / "a.pt2").stat().st_size > 10_000
    check_output(tmp_path / "a.pt2", "graph")  # it may be replaced
    stored = {"metadata.json": ""}
    torch.export.load(tmp_path / "a.pt2", extra_files=stored)
    entries = json.loads(stored["metadata.json"])
    assert json.loads(entries["input"])["axes"] == "BCTHW" and entries["model_id"] == model.model_id
    assert [output["block"] for output in json.loads(entries["outputs"])] == [0, 1]


def dimensions(file):
    """Names of the dynamic dimensions, and sizes of the others, of inputs and outputs of an ONNX file."""
    graph = pytest.importorskip("onnx").load(file).graph
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }


@pytest.mark.slow
def test_an_8_bit_file_takes_frames_of_any_size_and_gives_the_features_of_encode(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime, which the file is checked in, is absent")
    model = tiny_encoder()
    model.save_pretrained(tmp_path / "model")
    out = tmp_path / "a.onnx"
    done = run_tubelet("convert", tmp_path / "model", out, "--preprocess", "--image-size", "32", "--int8")
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stdout.split())
    assert "at most 1 of 255" in words and "over 3 shapes" in words and "cosine in int8 0.99" in words
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("a.")] == ["a.onnx"]
    check_output(out, "onnx")  # it may be replaced
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    assert dimensions(out) == {
        "frames": ["batch", "frames", "height", "width", 3],
        "level0": ["batch", "tokens", 24],
        "level1": ["batch", "tokens", 24],
    }
    stored = session.get_modelmeta().custom_metadata_map
    assert stored["image_size"] == "32" and json.loads(stored["input"])["dtype"] == "uint8"
    frames = torch.stack([torch.from_numpy(indexed_image(index, 96)) for index in range(4)])[None, :, 8:72]
    levels = session.run(None, {"frames": frames.numpy()})
    for ours, expected in zip(levels, model.encode(frames, resize=32).levels, strict=True):
        assert torch.cosine_similarity(torch.from_numpy(ours), expected, dim=-1).mean() > 0.999


def test_a_file_that_computes_something_else_is_refused(saved, tmp_path, monkeypatch):
    def wrong(plan, out: Path):
        return lambda pixels: [level + 1e-3 for level in plan.graph(pixels)]

    monkeypatch.setattr(export, "_to_pt2", wrong)
    (tmp_path / "a.pt2").write_text("of before")
    with pytest.raises(TubeletError, match=r"differs from eager by 1\.0e-03"):
        export_encoder(load_unplaced(saved, LoadSpec()), tmp_path / "a.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]
    assert (tmp_path / "a.pt2").read_text() == "of before"


@pytest.mark.slow
@pytest.mark.parametrize("task", ["timeline", "regression"])
def test_an_encoder_with_a_head_is_one_graph_from_frames_to_scores(tmp_path, task):
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime, which the file is checked in, is absent")
    model = tiny_encoder()
    model.save_pretrained(tmp_path / "model")
    head = tiny_head(model, task, exclusive=task == "timeline")
    if task == "regression":
        head.target_scale, head.target_mean = torch.tensor([1.0, 5.0, 9.0]), torch.tensor([3.0, 0.0, -7.0])
    head.save(tmp_path / "head.safetensors")
    done = run_tubelet("convert", tmp_path / "model", tmp_path / "a.onnx", "--head", tmp_path / "head.safetensors")
    assert done.returncode == 0, done.stderr
    assert "4 sizes of frames" in done.stdout.replace("\n", " ")
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    frames = torch.stack([torch.from_numpy(indexed_image(index, 96)) for index in range(4)])[:, 8:72]
    assert dimensions(tmp_path / "a.onnx")["frames"] == [4, "height", "width", 3]
    (scores,) = session.run(None, {"frames": frames.numpy()})
    expected = head(model.dense_features(resize_center_crop(frames, 32).unsqueeze(0)))[0]
    assert tuple(scores.shape) == tuple(expected.shape) == ((2, 3) if task == "timeline" else (3,))
    torch.testing.assert_close(torch.from_numpy(scores), expected, atol=2e-2 * float(head.target_scale.max()), rtol=0)
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["outputs"])[0]["axes"] == ("TK" if task == "timeline" else "K")
    stored = json.loads(metadata["head"])
    assert stored["classes"] == list(head.spec.classes) and stored["input"]["fps"] == 12.0


def test_frames_are_resized_in_the_graph_as_by_pytorch():
    graph = FramePreprocessing(32)
    for height, width in ((32, 32), (39, 54), (64, 97), (20, 48), (240, 135)):
        frames = torch.stack([torch.from_numpy(indexed_image(i, 256)) for i in range(4)])[:, :height, :width]
        ours, expected = graph.crop(frames), resize_center_crop(frames, 32).permute(1, 2, 3, 0).float()
        assert (ours - expected).abs().max() <= 1 and (ours != expected).float().mean() < 0.02


def test_a_head_of_another_encoder_is_not_exported(tmp_path):
    head = tiny_head(tiny_encoder(), "classification")
    with pytest.raises(TubeletError, match="was trained on the encoder"):
        export_head(tiny_encoder(seed=1), head, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
