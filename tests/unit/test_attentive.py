"""The attentive probe, and heads that are trained side by side."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from tubelet.errors import TubeletError
from tubelet.heads import state as training_state
from tubelet.heads.attentive import AttentiveProbe, LinearProbe, probe_heads
from tubelet.heads.training import Candidate, Pooled, Schedule, collate, grid, score, train_side_by_side
from tubelet.tasks.metrics.ranking import UNKNOWN

CPU = torch.device("cpu")


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


def test_tokens_that_all_come_twice_say_what_they_say_once():
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


def trained(path, epochs=3, stop_after=None, candidates=None, monkeypatch=None):
    candidates = candidates or grid((1e-2,), (0.0, 0.1))
    if stop_after is not None:
        saved, keep = [], training_state.write_state

        def stop(*arguments):
            keep(*arguments)
            saved.append(arguments)
            if len(saved) == stop_after:
                raise KeyboardInterrupt

        monkeypatch.setattr(training_state, "write_state", stop)
    schedule = Schedule(epochs=epochs, batch_size=4 if epochs > 3 else 12, seed=3)
    return train_side_by_side(
        lambda: AttentiveProbe(8, (3,), heads=1), candidates, schedule, Clouds(), F.cross_entropy, path, CPU
    )


def test_heads_side_by_side_learn_what_each_would_learn_alone(tmp_path):
    candidates = grid((1e-3, 1e-2), (0.0,))
    together = trained(tmp_path / "both.pt", candidates=candidates)
    for i, candidate in enumerate(candidates):
        alone = trained(tmp_path / f"{i}.pt", candidates=[candidate])
        for a, b in zip(together[i].parameters(), alone[0].parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-6)
    first, second = (together[i].linears[0].weight for i in range(2))
    assert not torch.allclose(first, second)


def test_a_training_that_was_stopped_after_an_epoch_ends_with_the_same_weights(tmp_path, monkeypatch):
    whole = trained(tmp_path / "whole.pt")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "parts.pt", stop_after=2, monkeypatch=patch)
    continued = trained(tmp_path / "parts.pt")
    for a, b in zip(whole.parameters(), continued.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_damaged_state_is_named(tmp_path):
    (tmp_path / "state.pt").write_bytes(b"not a state")
    with pytest.raises(TubeletError, match=r"state\.pt.*delete this state"):
        trained(tmp_path / "state.pt")


def test_what_was_learnt_is_scored_with_answers_averaged_over_views(tmp_path):
    heads = trained(tmp_path / "state.pt", epochs=8)
    softmax = lambda x: x.softmax(-1)  # noqa: E731
    scores = score(heads, Clouds(), softmax, CPU, batch_size=5)
    best = max(float((own[0].ranks == 0).float().mean()) for own in scores)
    assert best > 0.9

    class Mixed(Clouds):
        def __getitem__(self, index):
            tokens, labels = super().__getitem__(index)
            return (torch.cat([tokens, -tokens]) if index == 1 else tokens), labels

    mixed = score(heads, Mixed(), softmax, CPU, batch_size=5)
    with torch.no_grad():
        views = torch.stack([heads[0](sign * Clouds()[1][0].float())[0].softmax(-1)[0] for sign in (1, -1)])
    assert torch.allclose(mixed[0][0].shares[1], views.mean(0).sort(descending=True).values, atol=1e-2)
    assert torch.equal(mixed[0][0].ranks[2:], scores[0][0].ranks[2:])


def test_a_class_that_a_head_does_not_know_is_never_found_and_a_diverged_head_finds_nothing():
    head = LinearProbe(torch.zeros(4), torch.ones(4), 3)
    samples = Pooled(torch.eye(4), torch.tensor([[0], [1], [2], [3]]))
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(3, 4))
    (own,) = score(torch.nn.ModuleList([head]), samples, lambda x: x.softmax(-1), CPU)[0]
    assert own.ranks.tolist() == [0, 0, 0, UNKNOWN]
    with torch.no_grad():
        head.linear.weight.fill_(torch.nan)
    (own,) = score(torch.nn.ModuleList([head]), samples, lambda x: x.softmax(-1), CPU)[0]
    assert (own.ranks > 0).all()


def test_answers_can_be_held_to_the_classes_that_occur():
    head = LinearProbe(torch.zeros(3), torch.ones(3), 3)
    with torch.no_grad():
        head.linear.bias.copy_(torch.tensor([3.0, 2.0, 1.0]))
    samples = Pooled(torch.zeros(1, 3), torch.tensor([[2]]))
    allowed = [torch.tensor([False, True, True])]
    (own,) = score(torch.nn.ModuleList([head]), samples, lambda x: x.softmax(-1), CPU, among=allowed)[0]
    assert own.ranks.tolist() == [2] and own.ranks_among.tolist() == [1]


def test_the_rate_warms_up_and_falls_to_zero():
    schedule, candidate = (
        Schedule(epochs=4, batch_size=1, warmup_epochs=1, start_lr=0.1),
        Candidate(lr=1, weight_decay=0),
    )
    rates = [schedule.lr(candidate, step, 10) for step in range(40)]
    assert rates[0] == pytest.approx(0.1 + 0.9 * 0.1) and max(rates) == rates[9] == 1.0
    assert rates[24] == pytest.approx(0.5) and rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert math.isclose(Schedule(epochs=2, batch_size=1).lr(candidate, 0, 5), 0.5 * (1 + math.cos(0.1 * math.pi)))


def test_a_training_of_one_step_learns_something():
    assert Schedule(epochs=1, batch_size=8).lr(Candidate(lr=1e-3, weight_decay=0), 0, 1) == 1e-3


def test_samples_of_several_shapes_make_one_batch():
    batch = collate([(torch.zeros(2, 3, 4), torch.tensor([5])), (torch.ones(1, 6, 4), torch.tensor([7]))])
    assert [tuple(group.shape) for group in batch.groups] == [(2, 3, 4), (1, 6, 4)]
    assert batch.owner.tolist() == [0, 0, 1] and batch.labels.tolist() == [[5], [7]]
