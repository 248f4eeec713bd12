"""The attentive probe, and heads that are trained side by side."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from tubelet.errors import TubeletError
from tubelet.heads import training
from tubelet.heads.attentive import AttentiveProbe, probe_heads
from tubelet.heads.linear import LinearProbe
from tubelet.heads.training import EpochBatches, HeadSchedule, hparam_grid
from tubelet.tasks.common.classification_plan import TrainingSettings
from tubelet.tasks.common.classification_scores import Pooled, collate, score_heads, train_classifiers
from tubelet.tasks.metrics.ranking import UNKNOWN

CPU = torch.device("cpu")


@pytest.mark.slow
def test_the_probe_computes_what_the_other_implementation_of_vjepa2_does():
    from transformers import VJEPA2Config
    from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2AttentivePooler

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_pooler_layers": 3}
    theirs = VJEPA2AttentivePooler(VJEPA2Config(**sizes, attn_implementation="sdpa")).eval()
    ours = AttentiveProbe(32, (5,), heads=4)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(std=0.2)
    state = ours.state_dict()
    state["queries"] = theirs.query_tokens[0]
    layers = [(f"blocks.{i}.", layer, layer.self_attn) for i, layer in enumerate(theirs.self_attention_layers)]
    layers.append(("pool.", theirs.cross_attention_layer, theirs.cross_attention_layer.cross_attn))
    for name, layer, attention in layers:
        for end in ("weight", "bias"):
            q, k, v = (getattr(getattr(attention, f"{part}_proj"), end) for part in "qkv")
            if name == "pool.":
                state |= {f"{name}q.{end}": q, f"{name}kv.{end}": torch.cat([k, v])}
            else:
                state |= {f"{name}qkv.{end}": torch.cat([q, k, v])}
                state[f"{name}proj.{end}"] = getattr(attention.out_proj, end)
            for n in (1, 2):
                state[f"{name}norm{n}.{end}"] = getattr(getattr(layer, f"layer_norm{n}"), end)
                state[f"{name}mlp.fc{n}.{end}"] = getattr(getattr(layer.mlp, f"fc{n}"), end)
    ours.load_state_dict(state)
    tokens = torch.randn(2, 12, 32)
    with torch.no_grad():
        expected = ours.linears[0](theirs(tokens))
        assert torch.allclose(ours(tokens)[0], expected, atol=1e-5)


def test_tokens_that_all_come_twice_name_what_they_count_once():
    torch.manual_seed(0)
    probe, tokens = AttentiveProbe(32, (5, 3), heads=2), torch.randn(2, 9, 32)
    for once, twice in zip(probe(tokens), probe(torch.cat([tokens, tokens], dim=1)), strict=True):
        assert torch.allclose(once, twice, atol=1e-5)


def test_wide_probes_have_sixteen_heads_and_narrow_ones_those_of_their_encoder():
    assert [probe_heads(1664, 26), probe_heads(1024, 16), probe_heads(128, 4)] == [16, 16, 4]


class Clouds(Dataset):
    """Tokens (1, M, 8) of which the mean channel says the class; every second sample has more tokens."""

    def __init__(self, count: int = 24) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(count).remainder(3).unsqueeze(1)
        self.tokens = [torch.randn(1, 4 + 2 * (i % 2), 8, generator=generator).half() for i in range(count)]
        for tokens, label in zip(self.tokens, self.labels[:, 0].tolist(), strict=True):
            tokens[..., label] += 2

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index):
        return self.tokens[index], self.labels[index]


def context(folder, progress=lambda stage, done, total: None):
    """What training and scoring need of an evaluation."""
    return SimpleNamespace(
        task="t", model=SimpleNamespace(device=CPU), cache=SimpleNamespace(folder=folder), progress=progress
    )


def trained(folder, epochs=3, hparams=None, progress=lambda stage, done, total: None):
    hparams = hparams or hparam_grid((1e-2,), (0.0, 0.1))
    settings = TrainingSettings(hparams=hparams, epochs=epochs, batch_size=4 if epochs > 3 else 12, seed=3)
    make_head = lambda: AttentiveProbe(8, (3,), heads=1)  # noqa: E731
    return train_classifiers(context(folder, progress), make_head, settings, Clouds(), F.cross_entropy, {})


@pytest.mark.slow
def test_heads_side_by_side_learn_what_each_would_learn_in_a_training_of_its_own(tmp_path):
    hparams = hparam_grid((1e-3, 1e-2), (0.0,))
    together = trained(tmp_path, hparams=hparams)
    for i, own in enumerate(hparams):
        single = trained(tmp_path, hparams=[own])
        for a, b in zip(together[i].parameters(), single[0].parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-6)
    first, second = (together[i].linears[0].weight for i in range(2))
    assert not torch.allclose(first, second)


def test_an_interrupted_training_resumes_within_an_epoch_to_the_same_weights(tmp_path, monkeypatch):
    whole = trained(tmp_path / "whole")
    monkeypatch.setattr(training, "SAVE_SECONDS", -1)

    def interrupt(stage, done, total):
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts", progress=interrupt)
    done = []
    resumed = trained(tmp_path / "parts", progress=lambda stage, step, total: done.append(step))
    assert done[0] == 3
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_damaged_state_is_named(tmp_path):
    trained(tmp_path)
    (state,) = (tmp_path / "heads").iterdir()
    state.write_bytes(b"not a state")
    with pytest.raises(TubeletError, match=r"\.pt.*delete this state"):
        trained(tmp_path)
    torch.save({"version": 1, "step": 3}, state)
    with pytest.raises(TubeletError, match=r"\.pt: version is 1, expected 2; delete this state"):
        trained(tmp_path)


def test_trained_heads_are_scored_with_answers_averaged_over_views(tmp_path):
    heads = trained(tmp_path, epochs=8)
    softmax = lambda x: x.softmax(-1)  # noqa: E731
    scores = score_heads(context(tmp_path), heads, Clouds(), softmax, batch_size=5)
    best = max(float((own[0].ranks == 0).float().mean()) for own in scores)
    assert best > 0.9

    class Mixed(Clouds):
        def __getitem__(self, index):
            tokens, labels = super().__getitem__(index)
            return (torch.cat([tokens, -tokens]) if index == 1 else tokens), labels

    mixed = score_heads(context(tmp_path), heads, Mixed(), softmax, batch_size=5)
    with torch.no_grad():
        views = torch.stack([heads[0](sign * Clouds()[1][0].float())[0].softmax(-1)[0] for sign in (1, -1)])
    assert torch.allclose(mixed[0][0].shares[1], views.mean(0).sort(descending=True).values, atol=1e-2)
    assert torch.equal(mixed[0][0].ranks[2:], scores[0][0].ranks[2:])


def test_a_class_that_a_head_does_not_know_is_never_found_and_a_diverged_head_finds_nothing():
    head = LinearProbe(torch.zeros(4), torch.ones(4), 3)
    samples = Pooled(torch.eye(4), torch.tensor([[0], [1], [2], [3]]))
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(3, 4))
    (own,) = score_heads(context(None), torch.nn.ModuleList([head]), samples, lambda x: x.softmax(-1))[0]
    assert own.ranks.tolist() == [0, 0, 0, UNKNOWN]
    with torch.no_grad():
        head.linear.weight.fill_(torch.nan)
    (own,) = score_heads(context(None), torch.nn.ModuleList([head]), samples, lambda x: x.softmax(-1))[0]
    assert (own.ranks > 0).all()


def test_answers_can_be_restricted_to_the_classes_that_occur():
    head = LinearProbe(torch.zeros(3), torch.ones(3), 3)
    with torch.no_grad():
        head.linear.bias.copy_(torch.tensor([3.0, 2.0, 1.0]))
    samples = Pooled(torch.zeros(1, 3), torch.tensor([[2]]))
    allowed = [torch.tensor([False, True, True])]
    (own,) = score_heads(
        context(None), torch.nn.ModuleList([head]), samples, lambda x: x.softmax(-1), allowed_classes=allowed
    )[0]
    assert own.ranks.tolist() == [2] and own.ranks_among.tolist() == [1]


def test_the_learning_rate_warms_up_and_falls_to_zero():
    schedule = HeadSchedule(steps=40, warmup_steps=10, start_lr=0.1)
    rates = [schedule.lr(1.0, step) for step in range(40)]
    assert rates[0] == pytest.approx(0.1 + 0.9 * 0.1) and max(rates) == rates[9] == 1.0
    assert rates[24] == pytest.approx(0.5) and rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert math.isclose(HeadSchedule(steps=10).lr(1.0, 0), 0.5 * (1 + math.cos(0.1 * math.pi)))
    held = HeadSchedule(steps=40, warmup_steps=10, hold_steps=1)
    assert [held.lr(2.0, step) for step in (0, 9, 10, 25)] == [0.2, 2.0, 2.0, pytest.approx(1.0)]


def test_the_learning_rate_of_a_single_step_is_the_peak():
    assert HeadSchedule(steps=1).lr(1e-3, 0) == 1e-3


def test_batches_cover_every_epoch_and_continue_from_any_step():
    batches = list(EpochBatches(7, 3, seed=0, epochs=2))
    assert [len(batch) for batch in batches] == [3, 3, 1, 3, 3, 1] == [len(b) for b in batches]
    first, second = ([index for batch in part for index in batch] for part in (batches[:3], batches[3:]))
    assert sorted(first) == sorted(second) == list(range(7)) and first != second
    assert list(EpochBatches(7, 3, seed=0, epochs=2, start=4)) == batches[4:]


def test_samples_of_several_shapes_make_one_batch():
    batch = collate([(torch.zeros(2, 3, 4), torch.tensor([5])), (torch.ones(1, 6, 4), torch.tensor([7]))])
    assert [tuple(group.shape) for group in batch.groups] == [(2, 3, 4), (1, 6, 4)]
    assert batch.owner.tolist() == [0, 0, 1] and batch.labels.tolist() == [[5], [7]]
