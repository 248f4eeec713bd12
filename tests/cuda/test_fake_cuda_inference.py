"""Encoding, prediction and the training of heads on fake CUDA tensors."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.fake_cuda import CUDA, OperatorLog, to_fake_cuda
from tests.helpers.fake_cuda_process import in_fake_cuda
from tests.helpers.fake_cuda_steps import real_tensors
from tests.helpers.heads import tiny_encoder, tiny_head

pytestmark = pytest.mark.slow

VIDEO = Path(__file__).parents[1] / "data" / "av1.mp4"
INPUT = "memory that is not pinned"  # what a caller passes comes from its own memory
RESULT = "a copy to the CPU"  # and what it gets goes there


def encoder(dtype=torch.bfloat16):
    with real_tensors("cpu"):
        model = tiny_encoder()
    return to_fake_cuda(model, dtype).requires_grad_(False).eval()


def assert_clean(log, *expected):
    found = log.unexpected(*expected)
    assert not found, found


def count(log, text):
    return sum(n for problem, n in log.problems.items() if text in problem)


@in_fake_cuda
def test_encode_of_colors():
    model = encoder()
    with OperatorLog() as log:
        features = model.encode(torch.empty(2, 3, 4, 32, 32, dtype=torch.uint8), resize=None)
        model.encode(torch.empty(2, 3, 4, 40, 40, device=CUDA, dtype=torch.uint8), resize=32)
        model.encode(torch.empty(3, 32, 32, dtype=torch.uint8), resize=None)
        features.upsample(16), features.pooled, features.map, repr(features)
        model.forward_intermediates(torch.empty(2, 3, 32, 32, device=CUDA), 2, norm=True)
    assert features.tokens.device == CUDA and features.tokens.dtype == torch.float32
    assert_clean(log, INPUT, "clips.py")


@in_fake_cuda
def test_encode_of_floats_looks_at_their_range():
    model = encoder()
    with OperatorLog(value=0.0) as log:  # none is infinite
        model.encode(torch.empty(2, 3, 4, 32, 32, device=CUDA), resize=None)
        model.encode(torch.empty(1, 3, 4, 32, 32, device=CUDA, dtype=torch.bfloat16), resize=None)
    assert count(log, "a value is read") == 2 * 2  # two numbers, in one copy on a device
    assert_clean(log, "a value is read", INPUT, "clips.py")


@in_fake_cuda
def test_stream_of_a_video():
    model = encoder()
    with OperatorLog() as log:
        windows = [features.tokens for features in model.stream(VIDEO, frames=4, resize=32)]
    assert len(windows) > 1
    assert_clean(log, INPUT, "clips.py")


@in_fake_cuda
@pytest.mark.parametrize("task", ["classification", "multilabel", "regression", "timeline", "segmentation", "depth"])
def test_predictions_of_a_batch_come_to_the_host_in_few_copies(task):
    from tubelet.config import PredictConfig
    from tubelet.grid import Modality
    from tubelet.heads.head_file import reduce_tokens
    from tubelet.prediction.layout import WindowLayout
    from tubelet.prediction.outputs import output_kind
    from tubelet.prediction.outputs.base import FileWindow, FrameSquare, SourceFile

    model, pixel = encoder(), task in ("segmentation", "depth")
    options = {"segmentation": {"network": "pixels"}, "depth": {"network": "depth_bins"}}.get(task, {})
    if pixel:
        options["input"] = {"frames": 1, "fps": 4.0, "stride_s": 1.0}
    if task == "depth":
        options |= {"options": {"bins": [0.5, 1.0, 2.0]}, "classes": ("depth",)}
    with real_tensors("cpu"):
        head = tiny_head(tiny_encoder(), task, **options)
    to_fake_cuda(head)
    layout = WindowLayout.of_head(head.spec, model.config.tubelet_size)
    with OperatorLog():
        output = output_kind(task)(head, Path("/nowhere"), PredictConfig(), layout)
    file = SourceFile(path="a.mp4", modality=Modality.VIDEO, size_bytes=1, changed_s=0.0, duration_s=2.0, windows=4)
    windows = [
        FileWindow(
            file=file,
            number=number,
            window=window,
            square=FrameSquare(number=0, count=1, shape=(32, 32)) if pixel else None,
        )
        for number, (window, _) in zip(range(4), layout.windows(2.0), strict=False)
    ]
    pixels = torch.empty(len(windows), 3, head.spec.input.frames, 32, 32, dtype=torch.uint8)
    if pixel:
        output._write_files = lambda *_: None
        output.discard = lambda key: output.pending.pop(key, None)
        output.summarize = lambda found: found[0, :3]
    with OperatorLog() as log, torch.no_grad():
        tokens = reduce_tokens(model.encode(pixels, resize=None), head.spec.input)
        rows = [*output.score(tokens, windows, pixels), *output.end(file)]
    assert rows
    assert count(log, RESULT) <= (len(windows) if pixel else 2)
    assert_clean(log, INPUT, RESULT, "clips.py")


@in_fake_cuda
def test_extraction_of_features():
    from tubelet.fitting.features import encode_tokens
    from tubelet.heads.head_file import HeadInput
    from tubelet.tasks.common import extract
    from tubelet.tasks.common.pooled_features import pooled_level

    clips = HeadInput(image_size=32, frames=4, fps=4.0, stride_s=1.0, cells=2)
    model, views = encoder(), torch.empty(1, 2, 3, 4, 32, 32, dtype=torch.uint8)
    with pytest.MonkeyPatch.context() as patch, OperatorLog() as log:
        patch.setattr(extract, "write_features", lambda *_: None)
        for encode in (extract.last_level, pooled_level, partial(encode_tokens, head_input=clips)):
            batches = extract._EncodedBatches(model, [Path("nowhere")] * 2, encode)
            assert [batches.add([(number, views)]) for number in (0, 1)] == [0, 1]  # one is written meanwhile
            assert batches.flush() == 2
    assert_clean(log, "clips.py")


def on_device(make, *args):
    """A module with initial values, which fake tensors cannot have."""
    with real_tensors("cpu"):
        module = make(*args)
    return to_fake_cuda(module)


def train(make_head, batch, backward, clip_norm=None):
    """Three steps of two heads; returns the log."""
    from tubelet.heads import training

    with pytest.MonkeyPatch.context() as patch, OperatorLog() as log:
        patch.setattr(training, "write_state", lambda *_: None)
        heads = training.train_heads(
            partial(on_device, make_head),
            training.hparam_grid((1e-3, 1e-2), (0.1,)),
            training.HeadSchedule(steps=3),
            lambda start: [batch] * 3,
            backward,
            Path("nowhere"),
            CUDA,
            seed=0,
            clip_norm=clip_norm,
        )
    assert all(p.device == CUDA for p in heads.parameters())
    return log


@in_fake_cuda
@pytest.mark.parametrize("probe", ["attentive", "linear"])
def test_training_of_probes(probe):
    from tubelet.heads.attentive import AttentiveProbe
    from tubelet.heads.linear import LinearProbe
    from tubelet.tasks.common.classification_scores import collate

    def linear_probe():
        return LinearProbe(torch.zeros(64), torch.ones(64), 5)

    if probe == "attentive":
        make, shape, outputs = partial(AttentiveProbe, 64, (5, 7), 2), (1, 12, 64), 2
    else:
        make, shape, outputs = linear_probe, (1, 64), 1
    batch = collate([(torch.empty(shape, dtype=torch.float16), torch.zeros(outputs, dtype=torch.int64))] * 3)

    def backward(heads, batch, step):
        labels = batch.labels[batch.owner].to(CUDA, non_blocking=True).unbind(1)
        for head in heads:
            losses = [F.cross_entropy(x, y) for x, y in zip(batch.apply(head, CUDA), labels, strict=True)]
            torch.stack(losses).sum().backward()

    assert_clean(train(make, batch, backward), INPUT)


def weighted_loss(logits, targets):
    return F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(-1)


@in_fake_cuda
@pytest.mark.parametrize("network", ["linear", "mlp", "attentive", "temporal"])
def test_training_of_networks(network):
    from tubelet.fitting.rounds import Rounds
    from tubelet.fitting.training import Candidate, train_candidates
    from tubelet.heads import training
    from tubelet.heads.head_file import make_network
    from tubelet.heads.training import HParams

    batch = (torch.empty(4, 2, 4, 64, dtype=torch.float16), torch.zeros(4, 5), torch.ones(4))
    if network == "temporal":
        batch = (batch[0], torch.zeros(4, 2, 5), torch.ones(4, 2))
    candidate = Candidate(network=network, options={}, hparams=HParams(lr=0.1, weight_decay=0.1), steps=2)
    context = SimpleNamespace(
        model=SimpleNamespace(device=CUDA),
        cache=SimpleNamespace(folder=Path("nowhere")),
        config=SimpleNamespace(seed=0),
        task="classification",
        rounds=Rounds(),
        in_round=lambda name: SimpleNamespace(progress=lambda *_: None),
    )
    with pytest.MonkeyPatch.context() as patch, OperatorLog() as log:
        patch.setattr(training, "write_state", lambda *_: None)
        (trained,) = train_candidates(
            context,
            [candidate],
            lambda own: on_device(make_network, own.network, 64, 5, {}),
            lambda own, start: iter([batch] * 2),
            lambda logits, targets, weights: (weighted_loss(logits, targets) * weights).mean(),
            "none",
        )
    assert all(p.device == CUDA for p in trained.parameters())
    assert_clean(log, INPUT)


@in_fake_cuda
@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_training_of_dense_heads(task):
    from tubelet.heads.linear import apply_heads, fit_whitening, linear_head
    from tubelet.tasks import depth, segmentation
    from tubelet.tasks.common.dense_heads import _drop_channels

    bins = torch.linspace(0.1, 10.0, 16, device=CUDA)
    loss, accumulate, outputs = {
        "segmentation": (segmentation.sum_of_losses, segmentation.accumulate, 9),
        "depth": (partial(depth.sum_of_losses, bins=bins), partial(depth.accumulate, bins=bins), 16),
    }[task]
    whitening = on_device(fit_whitening, [torch.randn(80, 64)])
    values = torch.empty(8, dtype=torch.float32 if task == "depth" else torch.uint8)

    def backward(heads, batch, step):
        rows = _drop_channels(whitening(batch[0].to(CUDA)), 2, 0.1, torch.Generator())
        loss(apply_heads(heads, rows), batch[1].to(CUDA)).backward()

    log = train(partial(linear_head, 64, outputs), (torch.empty(8, 64), values), backward, clip_norm=1.0)
    assert_clean(log, "blocking copy to the device")
    with OperatorLog() as log:
        accumulate(torch.empty(8, 2, outputs, device=CUDA), values.to(CUDA))
    assert_clean(log, "boolean index", "float64", "blocking copy to the device")


@in_fake_cuda
def test_step_of_finetuning():
    from tubelet.fitting import finetune
    from tubelet.heads.head_file import HeadInput, make_network

    model = encoder(torch.float32).requires_grad_(True)
    network = on_device(make_network, "linear", 24, 3, {})
    optimizer = torch.optim.AdamW([*model.parameters(), *network.parameters()], lr=1e-4)
    batch = [torch.empty(2, 3, 4, 32, 32, dtype=torch.uint8), torch.zeros(2, 3), torch.ones(2)]
    clips = HeadInput(image_size=32, frames=4, fps=4.0, stride_s=1.0)
    with OperatorLog(autocast=True) as log:
        finetune._take_step(
            model,
            network,
            optimizer,
            [x.pin_memory() for x in batch],
            clips,
            lambda x, y, w: (weighted_loss(x, y) * w).mean(),
            0,
        )
    assert_clean(log, "fitting/finetune.py", "clips.py", "matrix product in fp32")


@in_fake_cuda
def test_propagation_of_labels():
    from tubelet.heads.propagation import Propagation, propagate, to_pixels

    context = torch.empty(3, 8, 8, 64, device=CUDA)
    with OperatorLog() as log:
        shares = propagate(context[0], context, torch.empty(3, 8, 8, 4, device=CUDA), Propagation())
        to_pixels(shares, (64, 64)).cpu()
    assert count(log, RESULT) == 1
    assert_clean(log, RESULT)


@in_fake_cuda
def test_votes_of_neighbors():
    from tubelet.heads.knn import neighbor_votes

    table, labels = torch.empty(50, 64, dtype=torch.float16), torch.zeros(50, dtype=torch.int64)
    with OperatorLog() as log:
        (votes,) = neighbor_votes(table, labels, torch.empty(20, 64, dtype=torch.float16), 5, [10, 20], CUDA)
    assert votes[10].shape == (20, 5)
    assert_clean(log, "blocking copy to the device", RESULT)
