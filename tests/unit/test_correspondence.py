import pytest
import torch

from tubelet.tasks.common.camera_motion import displacements
from tubelet.tasks.common.correspondence import (
    PointErrors,
    StepTracks,
    concat_errors,
    moved_accuracy,
    point_errors,
    query_points,
    track_points,
    tracking_accuracy,
    tracks_by_step,
)
from tubelet.tasks.common.sample_clips import crop_tracks, temporal_windows


def moving_pattern(steps: int, size: int, dim: int = 16) -> torch.Tensor:
    """(S, size, size, D) features of a plane that moves one patch to the right each step."""
    plane = torch.randn(size, size + steps, dim, generator=torch.Generator().manual_seed(0))
    return torch.stack([plane[:, steps - s : steps - s + size] for s in range(steps)])


def tracks_of(places: list, visible: list) -> StepTracks:
    seen = torch.tensor(visible, dtype=torch.bool)
    return StepTracks(torch.tensor(places, dtype=torch.float32), seen, ~seen)


def test_a_step_has_the_mean_place_and_is_visible_in_all_frames_hidden_in_none() -> None:
    tracks = torch.tensor([[[8.0, 0.0], [16.0, 8.0], [0.0, 0.0], [4.0, 4.0], [1.0, 1.0], [3.0, 1.0]]])
    steps = tracks_by_step(tracks, torch.tensor([[True, True, True, False, False, False]]), 2, 8)
    assert steps.points[0].tolist() == [[1.5, 0.5], [0.25, 0.25], [0.25, 0.125]]
    assert steps.visible[0].tolist() == [True, False, False]
    assert steps.hidden[0].tolist() == [False, False, True]


def test_points_are_queried_at_their_first_visible_step_if_they_are_visible_again() -> None:
    asked, first = query_points(tracks_of([[[0, 0]] * 3] * 3, [[0, 1, 1], [0, 0, 1], [1, 0, 1]]))
    assert (asked.tolist(), first.tolist()) == ([0, 2], [1, 0])


def test_tokens_that_move_are_followed_exactly_and_standing_still_is_wrong_by_how_far_they_moved() -> None:
    features = moving_pattern(4, 6)
    # The center of token (row 2, column 1), hidden at step 1.
    tracks = tracks_of([[[1.5 + s, 2.5] for s in range(4)]], [[1, 0, 1, 1]])
    pairs = point_errors(features, tracks)
    assert pairs.moved.tolist() == [2, 3]
    assert pairs.reappeared.tolist() == [True, True]
    assert pairs.error.max() < 0.5  # right token; the parabola may lean to a side
    assert moved_accuracy(pairs) == 1


def test_a_smooth_bump_is_located_between_tokens() -> None:
    y, x = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(8) + 0.5, indexing="ij")
    centers = [(3.5, 3.5), (3.8, 4.2)]
    angle = [((x - cx).square() + (y - cy).square()).sqrt() / 4 for cx, cy in centers]
    features = torch.stack([torch.stack([a.cos(), a.sin()], -1) for a in angle])
    found = track_points(features, torch.tensor([[3.5, 3.5]]), torch.tensor([0]))
    assert found[0, 1].tolist() == pytest.approx(centers[1], abs=0.05)


def test_features_that_are_all_alike_find_a_moving_point_no_better_than_chance_allows() -> None:
    pairs = point_errors(torch.ones(2, 4, 4, 3), tracks_of([[[2.5, 2.5], [0.5, 2.5]]], [[1, 1]]))
    # The first of equals, the top left token, is 2 patches away; 4 of 16 centers lie within one patch, 3 at the edge.
    assert pairs.error.tolist() == [2]
    assert pairs.chance[0, :3].tolist() == [1 / 16, 4 / 16, 8 / 16]


def test_the_headline_counts_only_what_moved_and_is_unknown_where_nothing_did() -> None:
    pairs = PointErrors(
        torch.tensor([0.2, 0.9, 1.1, 0.1]), torch.tensor([1.5, 3, 2, 1]), torch.zeros(4, 8), torch.tensor([0, 1, 0, 0])
    )
    assert moved_accuracy(pairs) == pytest.approx(2 / 3)
    assert moved_accuracy(pairs[pairs.moved <= 1]) is None
    scores = tracking_accuracy(concat_errors([pairs, pairs]), (8, 8))
    assert scores["moved"]["pairs"] == 6 and scores["all"]["pairs"] == 8
    assert scores["moved"]["found"]["0.5 patch"] == pytest.approx(1 / 3)
    assert scores["moved"]["no motion"]["1 patch"] == 0
    assert scores["all"]["no motion"]["2 patches"] == pytest.approx(3 / 4)


def test_tracks_are_cut_as_the_frames_are() -> None:
    # A white pixel of 4 x 4 marks the point, in frames that are wider than high and one too many for whole windows.
    frames, tracks = torch.zeros(5, 48, 64, 3, dtype=torch.uint8), torch.zeros(1, 5, 2)
    for t in range(5):
        frames[t, 16:20, 12 + 8 * t : 16 + 8 * t] = 255
        tracks[0, t] = torch.tensor([14 + 8 * t, 18])
    windows = temporal_windows(frames, 2, 24)
    places, visible = crop_tracks(tracks.numpy(), torch.ones(1, 5, dtype=torch.bool).numpy(), (48, 64), 2, 24)
    assert windows.shape == (2, 3, 2, 24, 24) and places.shape == (1, 4, 2) and visible.all()
    for t in range(4):
        y, x = windows.transpose(1, 2).flatten(0, 1)[t, 0].nonzero().float().mean(0).tolist()
        assert places[0, t].tolist() == pytest.approx([x + 0.5, y + 0.5], abs=0.3)


def test_displacements_point_to_where_tokens_went() -> None:
    volume = displacements(moving_pattern(3, 6)).view(9, 2, 2)
    # Rows first: displacement (0, +1) is the sixth of nine.
    assert volume[5].flatten().tolist() == pytest.approx([1] * 4, abs=1e-5)
    assert volume[[i for i in range(9) if i != 5]].abs().max() < 0.5


def test_a_cell_next_to_the_edge_is_averaged_over_the_places_that_exist() -> None:
    assert displacements(torch.ones(2, 4, 4, 3)).tolist() == pytest.approx([1] * 36)


def test_one_time_step_has_no_displacement() -> None:
    assert displacements(torch.ones(1, 4, 4, 3)).shape == (0,)
