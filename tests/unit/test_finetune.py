"""Heads whose encoder was trained too."""

import dataclasses
import os
import signal
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from tubelet.config import FitConfig, ModelConfig, PredictorConfig
from tubelet.config.fields import SettingError
from tubelet.errors import CheckpointError, ConfigError, TrainingError
from tubelet.fitting import finetune as finetune_module
from tubelet.fitting.clip_finetune import finetune_clips
from tubelet.fitting.clip_fit import ClipObjective, fit_clips
from tubelet.fitting.evaluate import evaluate_on_labels
from tubelet.fitting.features import extract_rows
from tubelet.fitting.finetune import (
    AugmentedClips,
    TrainingClip,
    activation_bytes,
    finetune,
    finetune_recipe,
    layer_scales,
    trainable_copy,
)
from tubelet.fitting.label_task import FitContext, get_label_task
from tubelet.heads.head_file import EncoderId, Head, HeadInput, HeadSpec, get_network, load_head
from tubelet.labels.records import LabelRow, LabelTable
from tubelet.model.lora import add_adapters, get_adapters
from tubelet.pretrained.backbone import Backbone
from tubelet.tasks.common.cache import FeatureCache
from tubelet.train.signals import InterruptedRunError

TINY = ModelConfig(
    width=48, depth=3, heads=2, levels=(0, 2), patch_size=8, predictor=PredictorConfig(width=24, depth=1, heads=2)
)


def tiny_backbone(seed=0, with_predictor=False):
    torch.manual_seed(seed)
    model = Backbone(TINY, with_predictor)
    model.identify()
    return model.requires_grad_(False).eval()


def spec_for(model, finetuned, classes=("left", "right")):
    return HeadSpec(
        task="classification",
        network="linear",
        options={},
        width=model.config.width,
        classes=classes,
        input=HeadInput(image_size=32, frames=4, fps=8.0, stride_s=0.5),
        encoder=EncoderId(
            source="runs/base", model_id=model.model_id, weights_id=model.weights_id, config_hash=model.config_hash
        ),
        finetuned=finetuned,
    )


def trained_weights(model, finetuned):
    """Weights as after some training."""
    twin = Backbone(model.config)
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("predictor.")})
    if finetuned == "lora":
        add_adapters(twin, 2)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    state = get_adapters(twin) if finetuned == "lora" else twin.state_dict()
    return {name: value.detach().clone() for name, value in state.items()}, twin


@pytest.mark.parametrize("finetuned", ["lora", "full"])
@pytest.mark.slow
def test_a_head_file_carries_the_trained_encoder(finetuned, tmp_path):
    model, pixels = tiny_backbone(with_predictor=True), torch.randn(2, 3, 4, 32, 32)
    before, base_id = model.encode(pixels, normalized=True).tokens, model.weights_id
    weights, trained = trained_weights(model, finetuned)
    Head(spec_for(model, finetuned), encoder_weights=weights).save(tmp_path / "head.safetensors")
    head = load_head(tmp_path / "head.safetensors")
    adapted = head.adapt(model)
    with torch.no_grad():
        expected = trained(pixels)[-1]
    torch.testing.assert_close(adapted.encode(pixels, normalized=True).tokens, expected, rtol=1e-5, atol=1e-5)
    assert head.adapt(adapted) is adapted
    assert adapted.weights_id == head.adapted_weights_id != base_id == model.weights_id
    assert torch.equal(model.encode(pixels, normalized=True).tokens, before)
    assert not torch.allclose(before, expected, atol=1e-2)
    assert not adapted.training and not any(p.requires_grad for p in adapted.parameters())


def test_the_identity_of_an_adapted_encoder_does_not_depend_on_the_data_type_it_was_loaded_with(tmp_path):
    model = tiny_backbone()
    half = tiny_backbone().to(torch.bfloat16)
    for finetuned in ("lora", "full"):
        weights, _ = trained_weights(model, finetuned)
        head = Head(spec_for(model, finetuned), encoder_weights=weights)
        assert head.adapt(half).weights_id == head.adapt(model).weights_id
        assert head.adapt(half).dtype == torch.bfloat16


def test_a_head_with_a_trained_encoder_refuses_other_encoders(tmp_path):
    model, other = tiny_backbone(), tiny_backbone(seed=1)
    weights, _ = trained_weights(model, "lora")
    head = Head(spec_for(model, "lora"), encoder_weights=weights)
    twin = Head(spec_for(model, "lora"), encoder_weights=trained_weights(model, "lora")[0])
    for wrong in (other, twin.adapt(model)):
        with pytest.raises(ConfigError, match="was trained on the encoder"):
            head.adapt(wrong)


def test_a_frozen_encoder_is_used_as_it_is():
    model = tiny_backbone()
    head = Head(spec_for(model, None))
    assert head.adapt(model) is model and head.adapted_weights_id == model.weights_id


@pytest.mark.parametrize("claimed", ["lora", None])
def test_a_head_file_without_the_encoder_that_it_claims_is_refused(claimed, tmp_path):
    model = tiny_backbone()
    weights = {} if claimed else trained_weights(model, "full")[0]
    Head(spec_for(model, claimed), encoder_weights=weights).save(tmp_path / "head.safetensors")
    with pytest.raises(CheckpointError, match="weights of an encoder"):
        load_head(tmp_path / "head.safetensors")


def test_adapters_of_another_architecture_are_refused():
    model = tiny_backbone()
    weights, _ = trained_weights(model, "lora")
    name = next(name for name in weights if "lora_B" in name)
    wrong = weights | {name: torch.zeros(7, 2)}
    with pytest.raises(CheckpointError, match="does not match this encoder"):
        Head(spec_for(model, "lora"), encoder_weights=wrong).adapt(model)


# Training


CLIP = HeadInput(image_size=32, frames=8, fps=8.0, stride_s=1.0)
FRAMES = 8
TRAIN, TEST = 40, 40


def write_drifting_texture(path, seed, left):
    """A second of a faint texture that drifts over a still image of strong colors."""
    rng = np.random.default_rng(seed)
    kernel = np.exp(-(np.arange(-4, 5) ** 2) / 8)
    texture = rng.standard_normal((40, 64))
    for axis in (0, 1):
        texture = np.apply_along_axis(np.convolve, axis, texture, kernel, "same")
    texture *= 25 / texture.std()
    still = 78 + 100 * rng.uniform(size=(5, 5, 3)).repeat(8, 0).repeat(8, 1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES, options={"crf": "12", "preset": "veryfast"})
        stream.width = stream.height = 40
        stream.pix_fmt, stream.codec_context.thread_count = "yuv420p", 1
        for i in range(FRAMES):
            x = 2 * i if left else 2 * (FRAMES - i)
            pixels = (still + texture[:, x : x + 40, None]).clip(0, 255).astype(np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, FRAMES)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Videos of a texture that drifts to the left or to the right; features of random weights hardly show which."""
    folder = tmp_path_factory.mktemp("drifting")
    rows = []
    for i in range(TRAIN + TEST):
        path = folder / f"{i}.mp4"
        write_drifting_texture(path, i, left=i % 2 == 0)
        split = "train" if i < TRAIN else "test"
        rows.append(LabelRow(line=i + 2, path=path, labels=("right" if i % 2 else "left",), split=split))
    return LabelTable(
        path=folder / "labels.csv",
        format="CSV",
        digest="0",
        columns=("path", "label", "split"),
        rows=rows,
        classes=("left", "right"),
        durations_s={row.path: 1.0 for row in rows},
    )


def context_for(table, folder, model=None, **settings):
    model = model or tiny_backbone()
    return FitContext(
        task="classification",
        table=table,
        splits=[(np.arange(TRAIN), np.arange(TRAIN, TRAIN + TEST))],
        model=model,
        source="runs/base",
        head_input=CLIP,
        config=FitConfig(
            **{"workers": 0, "networks": ("linear",), "learning_rates": (1e-2,), "weight_decays": (0.1,)} | settings
        ),
        cache=FeatureCache(folder, model),
        progress=lambda stage, done, total: None,
    )


def cross_entropy(logits, targets, weights):
    return -((targets * logits.log_softmax(-1)).sum(-1) * weights).mean()


def class_objective():
    def targets(rows, table):
        return torch.eye(2)[[table.classes.index(row.labels[0]) for row in rows]]

    return ClipObjective(
        link="log",
        targets=targets,
        standardized=False,
        loss=cross_entropy,
        choose=lambda logits, targets: -float(cross_entropy(logits, targets, torch.ones(len(logits)))),
        answers=lambda logits: logits.softmax(-1),
        measure=lambda *_: (),
    )


def training_clips(table, count=8):
    return [
        TrainingClip(path=row.path, start_s=0.0, end_s=1.0, number=0, target=torch.eye(2)[i % 2])
        for i, row in enumerate(table.rows[:count])
    ]


def linear_network():
    torch.manual_seed(0)
    network = get_network("linear")(48, 2)
    torch.nn.init.normal_(network.linear.weight, std=0.1)
    return network


@pytest.fixture
def decoded_once(monkeypatch):
    """Clips that every epoch crops anew are read from their files in the first one only."""
    read, frames = AugmentedClips._read, {}

    def read_once(clips, clip):
        if (key := (clip.path, clip.number)) not in frames:
            frames[key] = read(clips, clip)
        return frames[key]

    monkeypatch.setattr(AugmentedClips, "_read", read_once)


def accuracy(fit, logits):
    truth = fit.targets[torch.from_numpy(fit.held_out)].argmax(-1)
    return float((logits.argmax(-1) == truth).float().mean())


@pytest.mark.slow
@pytest.mark.parametrize(("finetuned", "lr"), [("lora", 1e-2), ("full", 3e-3)])
def test_a_trained_encoder_learns_what_features_of_the_frozen_one_do_not_show(
    finetuned, lr, table, tmp_path, decoded_once
):
    context = context_for(table, tmp_path, finetune=finetuned, finetune_lr=lr, finetune_epochs=24)
    frozen = fit_clips(context, class_objective(), ("linear",))
    tuned, weights = finetune_clips(context, class_objective(), frozen, finetune_recipe(context.config))
    before, after = accuracy(frozen, frozen.logits), accuracy(tuned, tuned.logits)
    assert after > before + 0.2, (before, after)
    # The file gives the same answers after it was read, from the features of the encoder that it carries.
    spec = spec_for(context.model, finetuned)
    Head(spec, tuned.network, encoder_weights=weights).save(tmp_path / "head.safetensors")
    head = load_head(tmp_path / "head.safetensors")
    row = table.rows[TRAIN]
    answer = head(head.adapt(context.model).encode(row.path, frames=8, fps=8.0, start=1 / 16, resize=32))
    assert (answer.argmax() == tuned.logits[0].argmax()) or abs(answer[0, 0] - 0.5) < 0.2


@pytest.mark.parametrize("finetuned", ["lora", "full"])
@pytest.mark.slow
def test_an_interrupted_training_continues_to_the_same_weights(finetuned, table, tmp_path):
    settings = {"finetune": finetuned, "finetune_epochs": 3, "finetune_batch_size": 3, "networks": ("mlp",)}
    network = get_network("mlp")(48, 2)  # with dropout

    def run(folder, stop_after=None):
        context = context_for(table, folder, **settings)

        def progress(stage, done, total):
            steps.append(done)
            if done == stop_after:
                os.kill(os.getpid(), signal.SIGTERM)

        object.__setattr__(context, "progress", progress)
        return finetune(context, finetune_recipe(context.config), network, training_clips(table), cross_entropy)

    steps = []
    expected_network, expected = run(tmp_path / "undisturbed")
    assert steps == list(range(10))
    for stop_after in (2, 7):
        with pytest.raises(InterruptedRunError, match=f"after step {stop_after} of 9 of fine-tuning") as stopped:
            run(tmp_path / "stopped", stop_after)
        assert stopped.value.exit_code == 128 + signal.SIGTERM
    steps = []
    trained, weights = run(tmp_path / "stopped")
    assert steps == [7, 8, 9]
    assert weights.keys() == expected.keys() and all(torch.equal(weights[k], expected[k]) for k in expected)
    for name, value in trained.state_dict().items():
        assert torch.equal(value, expected_network.state_dict()[name])
    _, weights = run(tmp_path / "stopped")  # nothing is left to do
    assert steps == [7, 8, 9, 9] and all(torch.equal(weights[k], expected[k]) for k in expected)


def test_the_state_is_saved_every_minute(table, tmp_path, monkeypatch):
    context = context_for(table, tmp_path, finetune="lora", finetune_epochs=2, finetune_batch_size=4)
    monkeypatch.setattr(finetune_module, "SAVE_SECONDS", 0)
    written = []
    monkeypatch.setattr(finetune_module, "write_state", lambda path, parts, step: written.append((step, [*parts])))
    finetune(context, finetune_recipe(context.config), linear_network(), training_clips(table), cross_entropy)
    assert [step for step, _ in written] == [1, 2, 3, 4]
    assert [parts for _, parts in written] == [["encoder", "network", "optimizer"]] * 3 + [["encoder", "network"]]


def test_training_leaves_the_encoder_and_the_network_of_the_frozen_head_as_they_are(table, tmp_path):
    context = context_for(table, tmp_path, finetune="full", finetune_epochs=1)
    network, before = linear_network(), context.model.weights_id
    kept = {name: value.clone() for name, value in network.state_dict().items()}
    finetune(context, finetune_recipe(context.config), network, training_clips(table), cross_entropy)
    context.model.identify()
    assert context.model.weights_id == before
    assert all(torch.equal(value, kept[name]) for name, value in network.state_dict().items())


def test_a_loss_that_is_not_finite_ends_the_training(table, tmp_path):
    context = context_for(table, tmp_path, finetune="full", finetune_epochs=1)
    with pytest.raises(TrainingError, match="lower --finetune-lr"):
        finetune(
            context,
            finetune_recipe(context.config),
            linear_network(),
            training_clips(table),
            lambda logits, targets, weights: logits.sum() * float("nan"),
        )


def test_clips_are_a_function_of_seed_and_step(table):
    recipe = finetune_recipe(FitConfig(finetune="full", crop_scale=(0.3, 0.6)))
    clips = training_clips(table)
    first, second = (AugmentedClips(clips, CLIP, recipe, seed=3, workers=0) for _ in range(2))
    assert torch.equal(first[5, 2][0], second[5, 2][0])
    assert first[5, 2][0].shape == (3, 8, 32, 32)
    other = AugmentedClips(clips, CLIP, recipe, seed=4, workers=0)
    for item in (first[6, 2], first[5, 3], other[5, 2]):
        assert not torch.equal(first[5, 2][0], item[0])


def test_clips_are_mirrored_only_where_asked(table):
    clips = training_clips(table)
    seen = {}
    for flip in (False, True):
        recipe = finetune_recipe(FitConfig(finetune="full", crop_scale=(1.0, 1.0), flip=flip))
        dataset = AugmentedClips(clips, CLIP, recipe, seed=0, workers=0)
        seen[flip] = [dataset[step, 0][0] for step in range(12)]
    assert all(torch.equal(clip, seen[False][0]) for clip in seen[False])
    assert any(torch.equal(clip, seen[False][0].flip(-1)) for clip in seen[True])


def test_learning_rates_fall_toward_the_input():
    scales = layer_scales(tiny_backbone().requires_grad_(True), TINY.levels, TINY.depth, 0.5)
    assert scales["norms.1.weight"] == 1.0
    assert scales["blocks.2.attention.qkv.weight"] == 0.5
    assert scales["blocks.0.mlp.fc1.bias"] == scales["norms.0.bias"] * 0.5 == 0.125
    assert scales["tokenizer.video.weight"] == 0.0625


def gradients(recompute):
    """Gradients of a training step, and the bytes of activations that it kept for its backward pass."""
    recipe = finetune_recipe(FitConfig(finetune="full"))
    encoder = trainable_copy(tiny_backbone(), recipe, seed=0)
    encoder.recompute_activations = recompute
    kept = {}
    weights = {p.untyped_storage().data_ptr() for p in encoder.parameters()}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    pixels = torch.randn(4, 3, 8, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = encoder.dense_features(pixels).tokens.square().mean()
    loss.backward()
    return [p.grad for p in encoder.parameters() if p.grad is not None], sum(kept.values())


def test_checkpointed_activations_take_less_memory_and_give_the_same_gradients():
    expected, kept = gradients(recompute=False)
    found, recomputed = gradients(recompute=True)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert recomputed < 0.3 * kept
    estimate = activation_bytes(tiny_backbone(), CLIP, batch_size=4)
    assert 0.7 < estimate / kept < 1.5


def test_checkpointing_is_chosen_by_the_free_memory(table, tmp_path, monkeypatch):
    chosen = []
    monkeypatch.setattr(finetune_module, "_take_step", lambda encoder, *_: chosen.append(encoder.recompute_activations))
    for settings, free in (({}, 1e12), ({}, 1e3), ({"activation_checkpointing": False}, 1e3)):
        memory = type("Memory", (), {"available": free})
        monkeypatch.setattr(finetune_module.psutil, "virtual_memory", lambda memory=memory: memory)
        context = context_for(table, tmp_path / str(len(chosen)), finetune="full", finetune_epochs=1, **settings)
        finetune(context, finetune_recipe(context.config), linear_network(), training_clips(table), cross_entropy)
    assert chosen == [False, True, False]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"lora_rank": 4}, "lora_rank is 4, which requires finetune lora, found none"),
        ({"lora_rank": 4, "finetune": "full"}, "lora_rank is 4, which requires finetune lora, found full"),
        ({"layer_decay": 0.7, "finetune": "lora"}, "layer_decay is 0.7, which requires finetune full, found lora"),
        ({"finetune_lr": 1e-3}, "finetune_lr is 0.001, which requires finetune lora or full, found none"),
        ({"flip": True}, "flip is True, which requires"),
        ({"crop_scale": (0.9, 0.2), "finetune": "full"}, "crop_scale is .*, expected two ascending fractions"),
    ],
)
def test_settings_without_effect_are_refused(settings, problem):
    with pytest.raises(SettingError, match=problem):
        FitConfig(**settings)


@pytest.mark.parametrize(("task", "finetuned", "folds"), [("classification", "full", 1), ("regression", "lora", 2)])
@pytest.mark.slow
def test_a_fit_measures_the_frozen_head_next_to_the_trained_one(task, finetuned, folds, table, tmp_path):
    rows = [
        dataclasses.replace(row, split="", **({"labels": (), "values": (3.0 * i,)} if task == "regression" else {}))
        for i, row in enumerate(table.rows[:16])
    ]
    names = {"targets": ("speed",), "classes": ()} if task == "regression" else {}
    small = dataclasses.replace(table, rows=rows, **names)
    halves = [(np.arange(8), np.arange(8, 16)), (np.arange(8, 16), np.arange(8))]
    context = dataclasses.replace(
        context_for(small, tmp_path, finetune=finetuned, finetune_epochs=2, epochs=5), task=task, splits=halves[:folds]
    )
    head, result = get_label_task(task).fit(context)
    rows_of = [score.model for score in result.spec.scores]
    assert rows_of[:2] == ["this head", "frozen head"] and len(set(rows_of)) == len(rows_of)
    assert head.spec.finetuned == finetuned and head.encoder_weights
    assert "The encoder was trained too" in result.protocol
    adapted = head.adapt(context.model)
    assert adapted.weights_id == head.adapted_weights_id != context.model.weights_id
    if folds == 1:  # the metrics are those of the file's own weights
        features = extract_rows(context.with_model(adapted).extract, rows[8:], small, CLIP)
        right = head(features.tokens.float()).argmax(-1) == torch.tensor([0, 1] * 4)
        assert result.spec.scores[0].metrics[0].value == pytest.approx(100 * right.float().mean().item())
        held_out = dataclasses.replace(small, rows=rows[8:])
        found = evaluate_on_labels(head, held_out, context.model, FitConfig(workers=0), cache=tmp_path)
        assert found.scores[0].metrics[0].value == result.spec.scores[0].metrics[0].value


def test_features_of_the_frozen_and_of_the_trained_encoder_are_never_mixed(table, tmp_path):
    context = context_for(table, tmp_path)
    weights, _ = trained_weights(context.model, "full")
    head = Head(spec_for(context.model, "full"), encoder_weights=weights)
    rows = table.rows[:2]
    frozen = extract_rows(context.extract, rows, table, CLIP).tokens
    own = context.with_model(head.adapt(context.model))
    adapted = extract_rows(own.extract, rows, table, CLIP).tokens
    assert not torch.allclose(frozen, adapted, atol=1e-2)
    assert torch.equal(extract_rows(context.extract, rows, table, CLIP).tokens, frozen)
    assert own.cache.folder != context.cache.folder and context.with_model(context.model) is context
    with pytest.raises(AssertionError, match="a cache of teacher-"):
        extract_rows(dataclasses.replace(context, model=own.model).extract, rows, table, CLIP)


def test_timelines_refuse_to_train_the_encoder():
    task = get_label_task("timeline")
    FitConfig().reject_unused(task.unused, task.name)
    with pytest.raises(SettingError, match="finetune is lora, but is not supported by timeline"):
        FitConfig(finetune="lora").reject_unused(task.unused, task.name)


def test_a_network_without_gradients_cannot_train_an_encoder(table, tmp_path):
    context = context_for(table, tmp_path, finetune="lora", networks=("knn",))
    with pytest.raises(SettingError, match="networks is knn, not trained by gradients"):
        fit_clips(context, class_objective(), ("linear",))
