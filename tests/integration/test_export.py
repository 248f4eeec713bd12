"""An encoder as one graph: compiled, exported, and in another runtime."""

from pathlib import Path

import pytest
import torch

from tubelet.checkpoint import export
from tubelet.checkpoint.weights import LoadSpec
from tubelet.config import ModelConfig
from tubelet.errors import TubeletError
from tubelet.io.overwrite_checks import check_output
from tubelet.model.encoder import Encoder
from tubelet.pretrained.backbone import Backbone
from tubelet.pretrained.load import load_unplaced

CONFIG = ModelConfig(width=48, depth=2, heads=2, levels=(0, 1), output_levels=1, patch_size=8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    Backbone(CONFIG).save_pretrained(folder / "tiny")
    return folder / "tiny"


@pytest.mark.slow
@pytest.mark.parametrize("rope", ["2.1", "2.0"])
def test_the_encoder_compiles_without_a_graph_break(rope):
    torch._dynamo.reset()
    torch.manual_seed(0)
    encoder = Encoder(ModelConfig(width=48, depth=2, heads=2, levels=(0, 1), patch_size=8, rope=rope)).eval()
    # Breaks are found while tracing, which is the same for every backend; this one does nothing else.
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    for shape in ((1, 3, 4, 32, 32), (2, 3, 6, 16, 24), (2, 3, 1, 16, 24)):
        pixels = torch.randn(shape)
        for ours, expected in zip(compiled(pixels), encoder(pixels), strict=True):
            torch.testing.assert_close(ours, expected)
    ids = torch.tensor([[0, 3, 5]])
    torch.testing.assert_close(compiled(pixels[:1], ids)[-1], encoder(pixels[:1], ids)[-1])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "images"), [("a.pt2", True), ("a.onnx", False)])
def test_an_exported_file_computes_what_eager_does_at_other_shapes(saved, tmp_path, name, images):
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime", reason="onnxruntime, which the file is checked in, is absent")
    said = export.export(load_unplaced(saved, LoadSpec()), tmp_path / name, images)
    assert "over 3 shapes" in said and "tokens/s" in said
    assert (tmp_path / name).stat().st_size > 10_000
    check_output(tmp_path / name, export.output_kind(tmp_path / name))  # it may be replaced


def test_a_file_that_computes_something_else_is_refused(saved, tmp_path, monkeypatch):
    def wrong(graph, shape, out: Path, images):
        return lambda pixels: [level + 1e-3 for level in graph(pixels)]

    monkeypatch.setattr(export, "_to_pt2", wrong)
    (tmp_path / "a.pt2").write_text("of before")
    with pytest.raises(TubeletError, match=r"differs from eager by 1\.0e-03"):
        export.export(load_unplaced(saved, LoadSpec()), tmp_path / "a.pt2")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt2"]
    assert (tmp_path / "a.pt2").read_text() == "of before"
