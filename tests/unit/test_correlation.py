"""The head that sees where tokens go."""

import pytest
import torch

from tests.helpers.heads import tiny_encoder, tiny_head
from tubelet.errors import ConfigError
from tubelet.heads.head_file import load_head
from tubelet.heads.networks.correlation import CorrelationNetwork, step_similarities

SIDE, D = 4, 16


def moving_tokens(videos: int, steps: int, shift: int, seed: int) -> torch.Tensor:
    """(B, T, S, D) tokens of random textures that move by `shift` cells along the rows from step to step."""
    wide = torch.randn(videos, SIDE, 64, D, generator=torch.Generator().manual_seed(seed))
    start = 32 - SIDE // 2
    views = [wide[:, :, start - shift * t : start - shift * t + SIDE] for t in range(steps)]
    return torch.stack([view.flatten(1, 2) for view in views], dim=1)


def test_the_most_similar_displacement_is_the_motion():
    for shift in (-1, 0, 1):
        similar = step_similarities(moving_tokens(4, 3, shift, 0))[:, :-1]
        by_displacement = similar.unflatten(-1, (3, 3, 4)).mean((0, 1, 4))
        assert divmod(int(by_displacement.argmax()), 3) == (1, 1 + shift)


def test_similarities_do_not_depend_on_what_is_beyond_the_edge():
    tokens = torch.ones(1, 2, SIDE**2, D)
    torch.testing.assert_close(step_similarities(tokens), torch.ones(1, 2, 9 * 4))


def test_the_direction_of_motion_is_learned_where_the_mean_token_says_nothing():
    torch.manual_seed(0)
    network = CorrelationNetwork(D, 2, hidden=16, layers=1)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for step in range(60):
        tokens = torch.cat([moving_tokens(8, 5, shift, 10 * step + shift) for shift in (-1, 1)])
        logits = network(tokens)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.arange(2).repeat_interleave(8 * 5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()
    for answer, shift in enumerate((-1, 1)):
        found = network(moving_tokens(16, 5, shift, 7001)).argmax(-1)
        assert (found == answer).float().mean() > 0.95


def test_logits_depend_on_no_more_steps_than_the_context():
    network = CorrelationNetwork(D, 3, hidden=8, layers=2).eval()
    tokens = torch.randn(1, 21, SIDE**2, D)
    changed = tokens.clone()
    changed[:, 10 + network.context + 1 :] = 0
    changed[:, : 10 - network.context] = 0
    torch.testing.assert_close(network(tokens)[:, 10], network(changed)[:, 10])
    changed[:, 10 + network.context] = 0
    assert not torch.allclose(network(tokens)[:, 10], network(changed)[:, 10], atol=1e-7)


def test_cells_that_are_no_square_are_refused():
    with pytest.raises(ConfigError, match="takes cells in a square, found 6"):
        CorrelationNetwork(D, 2)(torch.zeros(1, 2, 6, D))


def test_a_single_cell_is_taken():
    assert CorrelationNetwork(1, 2).eval()(torch.randn(2, 5, 1, 1)).shape == (2, 5, 2)


def test_a_head_file_has_the_network(tmp_path):
    head = tiny_head(tiny_encoder(), "timeline", network="correlation")
    tokens = torch.randn(2, 7, SIDE**2, head.spec.width)
    head.network.train()(tokens)
    head.eval().save(tmp_path / "head.safetensors")
    torch.testing.assert_close(load_head(tmp_path / "head.safetensors")(tokens), head(tokens))
