import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tubelet.heads.propagation import Propagation, propagate, segment, to_pixels

SETTINGS = Propagation(context=2, neighbors=3, radius=2, temperature=0.2)


def random_units(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_labels_are_carried_as_defined():
    current, context = random_units(5, 6, 8), random_units(2, 5, 6, 8, seed=1)
    labels = torch.rand(2, 5, 6, 3, generator=torch.Generator().manual_seed(2))
    labels /= labels.sum(-1, keepdim=True)
    found = propagate(current, context, labels, SETTINGS)
    for i in range(5):
        for j in range(6):
            votes = [
                (float(current[i, j] @ context[c, y, x]), labels[c, y, x])
                for c in range(2)
                for y in range(5)
                for x in range(6)
                if (y - i) ** 2 + (x - j) ** 2 <= 4
            ]
            best = sorted(votes, key=lambda vote: -vote[0])[:3]
            weights = torch.tensor([v for v, _ in best]).div(0.2).softmax(0)
            expected = sum(w * share for w, (_, share) in zip(weights, best, strict=True))
            torch.testing.assert_close(found[i, j], expected)


@pytest.mark.parametrize("most", [1, 700, 10**9])
def test_strips_of_rows_change_nothing(most):
    current, context = random_units(7, 5, 8), random_units(3, 7, 5, 8, seed=1)
    labels = F.one_hot(torch.randint(0, 4, (3, 7, 5), generator=torch.Generator().manual_seed(3)), 4).float()
    whole = propagate(current, context, labels, SETTINGS)
    torch.testing.assert_close(propagate(current, context, labels, SETTINGS, most), whole)


def test_an_object_that_moves_by_a_token_a_frame_is_followed_exactly():
    plane = random_units(8, 20, 16)
    frames = [plane[:, 6 - t : 14 - t] for t in range(5)]
    mask = np.zeros((32, 32), bool)
    mask[8:16, 4:12] = True  # 4 pixels a token: rows 2 and 3, columns 1 and 2
    settings = Propagation(context=2, neighbors=1, radius=5, temperature=0.2)
    masks = list(segment(iter(frames), {0: {1: mask}}, (32, 32), settings))
    np.testing.assert_array_equal(masks[0], mask)
    for t in range(1, 5):
        # The t columns of tokens on the left came into view and resemble anything; of all others it is known.
        known = masks[t][:, 4 * t + 3 :]
        assert known[9:15, 2:8].all()
        assert not known[:6].any() and not known[18:].any() and not known[:, 11:].any()


def test_an_object_that_begins_later_is_unknown_before_and_given_then():
    frames = [random_units(4, 4, 8)] * 4
    first, second = np.zeros((16, 16), bool), np.zeros((16, 16), bool)
    first[:4, :4], second[8:, 8:] = True, True
    masks = list(segment(iter(frames), {1: {3: first}, 2: {5: second}}, (16, 16), SETTINGS))
    assert [sorted(np.unique(mask).tolist()) for mask in masks] == [[0], [0, 3], [0, 3, 5], [0, 3, 5]]
    np.testing.assert_array_equal(masks[1] == 3, first)
    assert (masks[2][second] == 5).all()
    assert masks[3][1, 1] == 3 and masks[3][14, 14] == 5


def test_a_label_that_is_nowhere_is_never_chosen():
    shares = torch.zeros(3, 3, 3)
    shares[..., 0] = 0.6
    shares[1, 1] = torch.tensor([0.1, 0.9, 0.0])
    pixels = to_pixels(shares, (9, 9))
    assert set(pixels.unique().tolist()) == {0, 1} and pixels[4, 4] == 1
