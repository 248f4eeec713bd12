import sys

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from tubelet.config import MODELS, ModelConfig, PredictorConfig, model_preset, vit_b
from tubelet.errors import TubeletError
from tubelet.grid import Grid, Mask, MaskedGrid, Modality
from tubelet.model.encoder import Encoder
from tubelet.model.optimizers import LBFGS, AdamW
from tubelet.model.predictor import Predictor
from tubelet.model.rope import axis_size, pair_permutation, rotary_table, rotate
from tubelet.model.tokenizer import Tokenizer, patchify
from tubelet.objective import target_distance
from tubelet.vjepa import VJEPA, MaskedBatch


@pytest.fixture
def config():
    return ModelConfig(
        width=48,
        depth=4,
        heads=2,
        levels=(0, 1, 2, 3),
        patch_size=8,
        predictor=PredictorConfig(width=24, depth=2, heads=2),
    )


def test_a_224_px_clip_of_16_frames_is_1568_tokens_of_width_768():
    assert Tokenizer(vit_b())(torch.zeros(1, 3, 16, 224, 224)).shape == (1, 1568, 768)


def test_an_image_is_196_tokens_of_width_768():
    assert Tokenizer(vit_b())(torch.zeros(1, 3, 1, 224, 224)).shape == (1, 196, 768)


def test_patch_embedding_equals_a_convolution_whose_kernel_is_its_stride(config):
    tokenizer = Tokenizer(config)
    pixels = torch.randn(2, 3, 4, 16, 24)
    kernel = tokenizer.video.weight.view(48, 3, 2, 8, 8)
    expected = torch.nn.functional.conv3d(pixels, kernel, tokenizer.video.bias, stride=(2, 8, 8)).flatten(2).mT
    torch.testing.assert_close(tokenizer(pixels), expected + tokenizer.video_embedding)


def test_embedding_visible_patches_equals_embedding_all_and_choosing(config):
    tokenizer, pixels, ids = Tokenizer(config), torch.randn(1, 3, 4, 16, 24), torch.tensor([[0, 5, 7]])
    torch.testing.assert_close(tokenizer(pixels, ids), tokenizer(pixels)[:, [0, 5, 7]])


def test_rotation_in_halves_equals_rotation_of_interleaved_pairs():
    head_dim, grid = 14, Grid(2, 3, 4)  # 3 axes of 4 channels, 2 left over
    ids = torch.arange(grid.tokens).unsqueeze(0)
    x = torch.randn(1, grid.tokens, 1, head_dim, dtype=torch.float64)
    permutation = pair_permutation(head_dim)
    table = rotary_table(ids, grid, head_dim, rope_grid=None)
    ours = rotate(x[..., permutation], table)
    d = axis_size(head_dim)
    expected = x.clone()
    positions = (ids // 12, ids % 12 // 4, ids % 4)
    for axis, position in enumerate(positions):
        for i in range(d // 2):
            angle = position[0] / 10000 ** (i / (d / 2))
            a, b = x[0, :, 0, axis * d + 2 * i], x[0, :, 0, axis * d + 2 * i + 1]
            expected[0, :, 0, axis * d + 2 * i] = a * angle.cos() - b * angle.sin()
            expected[0, :, 0, axis * d + 2 * i + 1] = b * angle.cos() + a * angle.sin()
    torch.testing.assert_close(ours, expected[..., permutation], atol=1e-6, rtol=0)


def test_rows_and_columns_keep_their_angles_at_the_borders_at_any_resolution():
    small, large = Grid(1, 4, 4), Grid(1, 24, 12)
    last_small, last_large = torch.tensor([[15]]), torch.tensor([[24 * 12 - 1]])
    a = rotary_table(last_small, small, 48, rope_grid=16)
    b = rotary_table(last_large, large, 48, rope_grid=16)
    torch.testing.assert_close(a.cos, b.cos)


def test_the_student_cannot_see_hidden_pixels(config):
    encoder, grid = Encoder(config), Grid(2, 2, 2)
    pixels = torch.randn(1, 3, 4, 16, 16)
    ids = torch.tensor([[0, 3, 4, 7]])
    changed = pixels.clone()
    changed[..., :8, 8:] += 1  # patches 1 and 5 of the grid
    changed[..., 8:, :8] -= 1  # patches 2 and 6
    assert config.grid(4, 16, 16) == grid
    for a, b in zip(encoder(pixels, ids), encoder(changed, ids), strict=True):
        assert torch.equal(a, b)


def test_predictions_do_not_depend_on_the_order_of_the_index_lists(config):
    predictor, grid = Predictor(config), Grid(2, 2, 2)
    levels = [torch.randn(1, 3, 48) for _ in range(4)]
    mask = Mask(torch.tensor([[0, 3, 4]]), torch.tensor([[1, 2, 5]]))
    target, context = predictor(levels, [MaskedGrid(mask, grid, Modality.VIDEO)])[0]
    order = [2, 0, 1]
    shuffled = Mask(mask.context[:, order], mask.target[:, order])
    masked = MaskedGrid(shuffled, grid, Modality.VIDEO)
    target2, context2 = predictor([level[:, order] for level in levels], [masked])[0]
    torch.testing.assert_close(target[:, order], target2)
    torch.testing.assert_close(context[:, order], context2)


def test_distances_equal_those_of_every_pair():
    grid, generator = Grid(3, 5, 4), torch.Generator().manual_seed(0)
    order = torch.stack([torch.randperm(grid.tokens, generator=generator) for _ in range(2)])
    mask = Mask(order[:, :10], order[:, 50:])
    position = torch.cartesian_prod(torch.arange(3), torch.arange(5), torch.arange(4)).double()
    expected = torch.cdist(position[mask.context], position[mask.target]).amin(-1)
    torch.testing.assert_close(target_distance(mask, grid).double(), expected)


def test_no_gradient_reaches_the_teacher_and_all_of_student_and_predictor_learn(config):
    model = VJEPA(config)
    mask = Mask(torch.tensor([[0, 3, 4]]), torch.tensor([[1, 2, 5]]))
    pixels = torch.randn(1, 3, 4, 16, 16)
    (targets,) = model.targets([pixels])
    (losses,) = model([MaskedBatch(pixels, mask, targets)], 0.5)
    losses.total.backward()
    assert all(p.grad is None for p in model.teacher.parameters())
    without = {name for name, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without == {
        "student.tokenizer.image.weight",
        "student.tokenizer.image.bias",
        "student.tokenizer.image_embedding",
        "predictor.image_embedding",
    }


def test_the_teacher_moves_by_its_momentum(config):
    model = VJEPA(config)
    before = model.teacher.blocks[0].mlp.fc1.weight.clone()
    with torch.no_grad():
        model.student.blocks[0].mlp.fc1.weight.add_(1.0)
    model.update_teacher(0.9)
    torch.testing.assert_close(model.teacher.blocks[0].mlp.fc1.weight, before + 0.1)


def test_residual_projections_start_smaller_with_depth():
    torch.manual_seed(0)
    encoder = Encoder(ModelConfig(width=192, depth=4, heads=3, levels=(3,)))
    stds = [block.mlp.fc2.weight.std().item() for block in encoder.blocks]
    for i, std in enumerate(stds, start=1):
        assert std == pytest.approx(0.02 / (2 * i) ** 0.5, rel=0.02)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((1, 3, 4, 20, 16), "height is 20 pixels, expected a multiple of the patch size 8"),
        ((1, 3, 5, 16, 16), "5 frames, expected a multiple of the tubelet size 2"),
        ((1, 4, 4, 16, 16), "expected (clips, 3, frames, height, width)"),
        ((3, 4, 16, 16), "expected (clips, 3, frames, height, width)"),
    ],
)
def test_a_shape_that_does_not_fit_names_what_was_expected(config, shape, words):
    with pytest.raises(TubeletError) as error:
        Encoder(config)(torch.zeros(shape))
    assert words in str(error.value)


def test_patches_are_numbered_time_first_then_rows_then_columns():
    grid = Grid(2, 2, 2)
    pixels = torch.zeros(1, 1, 2, 4, 4)
    pixels[0, 0, 1, 2:, :2] = 7.0  # second step, second row, first column
    patches = patchify(pixels, grid)
    assert patches.shape == (1, 8, 4)
    assert (patches[0, 6] == 7).all() and patches.sum() == 28


class CalledFunctions(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.names.add(function.__name__)
        return function(*args, **kwargs or {})


def test_a_model_without_memory_calls_nothing_that_pytorch_imports_its_compiler_for():
    for device in ("meta", "cpu"):
        with torch.device(device), CalledFunctions() as called:
            VJEPA(model_preset("vit-pico"))
        assert ({"normal_", "div_"} <= called.names) == (device == "cpu")
        assert bool({"normal_", "div_"} & called.names) == (device == "cpu")


def test_every_model_preset_can_be_built_without_memory():
    millions = {}
    for name in MODELS:
        with torch.device("meta"):
            model = VJEPA(model_preset(name))
        millions[name] = sum(p.numel() for p in model.student.parameters()) / 1e6
    published = {"vit-b": 80, "vit-l": 300, "vit-g": 1000, "vit-G": 2000}
    for name, size in published.items():
        assert millions[name] == pytest.approx(size, rel=0.1), name


def test_optimizers_work_without_pytorchs_compiler(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch._dynamo", None)  # an error where it is imported
    weight = nn.Parameter(torch.ones(3))

    for optimizer in (AdamW([weight], lr=0.1, fused=True), LBFGS([weight])):

        def loss(optimizer=optimizer):
            optimizer.zero_grad()
            value = (weight - 3).square().sum()
            value.backward()
            return value

        before = loss()
        optimizer.step(loss)
        optimizer.load_state_dict(optimizer.state_dict())
        assert loss() < before
    with pytest.raises(ImportError):
        torch.optim.AdamW([weight], fused=True).step()
