"""Linear probes of frozen features, solved to their optimum.

n rows (tokens or clips), D channels, K classes. Every feature goes through the same functions, the same grid of
regularization strengths and the same rows. Both probes are solved to their optimum, ridge regression in closed form and
softmax regression with a preconditioner: stopped early, it would favor features whose channels happen to be less
correlated, which is a property of the optimizer and not of what the features know.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tubelet.heads.linear import safe_std
from tubelet.model.optimizers import LBFGS

# Penalties on half the squared weights, added to losses that are means over rows of standardized features. In the order
# in which they are tried: each fit starts where the one before it, of a stronger penalty, ended.
L2_GRID = (100.0, 10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4)
MAX_ITERATIONS = 200
_CHUNK = 4096  # rows whose products are summed in float32 before they are added up in float64
_AXES_ROWS = 8192  # rows that principal axes are estimated from; they change the path of a fit, not its end


@dataclass(frozen=True)
class ChannelScaling:
    """The map of each channel to mean 0 and standard deviation 1 over the training rows.

    Attributes:
        mean: (D,).
        scale: (D,) standard deviation; 1 for a channel that does not vary.
    """

    mean: Tensor
    scale: Tensor

    def apply_(self, x: Tensor) -> Tensor:
        """Scale (n, D) in place, to save memory, and return it."""
        return x.sub_(self.mean).div_(self.scale)


def fit_scaling(x: Tensor) -> ChannelScaling:
    """The scaling of training rows (n, D)."""
    std, mean = torch.std_mean(x, dim=0, correction=0)
    return ChannelScaling(mean, safe_std(std, mean))


@dataclass(frozen=True)
class Probe:
    """A fitted linear map.

    Attributes:
        weight: (D, K) float32.
        bias: (K,) float32.
        l2: the penalty that it was fitted with.
    """

    weight: Tensor
    bias: Tensor
    l2: float

    def __call__(self, x: Tensor) -> Tensor:
        """(n, D) scaled features -> (n, K)."""
        return torch.addmm(self.bias, x, self.weight)


@dataclass(frozen=True)
class SecondMoments:
    """Sums over rows, all that ridge regression needs; float64.

    Attributes:
        n: number of rows.
        x: (D,) sum of features.
        y: sum of targets.
        xx: (D, D) sum of products.
        xy: (D,) sum of products.
    """

    n: int
    x: Tensor
    y: Tensor
    xx: Tensor
    xy: Tensor

    def __add__(self, other: "SecondMoments") -> "SecondMoments":
        return SecondMoments(
            self.n + other.n, self.x + other.x, self.y + other.y, self.xx + other.xx, self.xy + other.xy
        )


def second_moments(x: Tensor, y: Tensor) -> SecondMoments:
    """The moments of features (n, D) and targets (n,), float32."""
    D = x.shape[1]
    xx, xy = torch.zeros(D, D, dtype=torch.float64), torch.zeros(D, dtype=torch.float64)
    for part, target in zip(x.split(_CHUNK), y.split(_CHUNK), strict=True):
        xx += part.T @ part
        xy += part.T @ target
    return SecondMoments(len(x), x.sum(0, dtype=torch.float64), y.sum(dtype=torch.float64), xx, xy)


def fit_ridge(moments: SecondMoments, l2: float) -> Probe:
    """The minimum of mean squared error / 2 + l2 · |weight|² / 2, with a bias that is not penalized.

    Returns:
        A probe of K = 1.
    """
    x, y = moments.x / moments.n, moments.y / moments.n
    covariance = moments.xx / moments.n - torch.outer(x, x)
    covariance.diagonal().add_(l2)
    factor = torch.linalg.cholesky(covariance)
    weight = torch.cholesky_solve((moments.xy / moments.n - x * y).unsqueeze(1), factor)
    return Probe(weight.float(), (y - x @ weight).float(), l2)


def select_ridge(x: Tensor, y: Tensor, held_out: Tensor) -> Probe:
    """Ridge regression on all rows, with the penalty of the smallest error on held-out rows.

    Args:
        x: (n, D) scaled features.
        y: (n,) targets.
        held_out: (n,) bool, the rows that choose the penalty.
    """
    fitting, choosing = second_moments(x[~held_out], y[~held_out]), second_moments(x[held_out], y[held_out])
    x_held, y_held = x[held_out], y[held_out]
    errors = {l2: float((fit_ridge(fitting, l2)(x_held)[:, 0] - y_held).square().mean()) for l2 in L2_GRID}
    return fit_ridge(fitting + choosing, min(errors, key=errors.__getitem__))


@dataclass(frozen=True)
class PrincipalAxes:
    """Principal axes of features: coordinates in which a linear model's loss curves independently.

    Attributes:
        directions: (D, D) orthonormal columns.
        power: (D,) mean square of the features along each.
    """

    directions: Tensor
    power: Tensor


def principal_axes(x: Tensor) -> PrincipalAxes:
    """The principal axes of scaled features (n, D), estimated from some of the rows."""
    sample = x[:: max(1, len(x) // _AXES_ROWS)]
    power, directions = torch.linalg.eigh(sample.T @ sample / len(sample))
    return PrincipalAxes(directions, power.clamp(min=0))


def fit_softmax(
    x: Tensor,
    y: Tensor,
    classes: int,
    l2: float,
    axes: PrincipalAxes | None = None,
    start: Probe | None = None,
    tolerance: float = 1e-5,
) -> Probe:
    """The minimum of mean cross-entropy + l2 · |weight|² / 2, with a bias that is not penalized.

    L-BFGS over all rows, in coordinates in which the loss curves about equally in all directions: along an axis of
    power s, a class that q of the rows have curves by about q (1 - q) s + l2. Classes without a row would have a bias
    of minus infinity: they are left out of the fit, and the probe never predicts them.

    Args:
        x: (n, D) scaled features, float32.
        y: (n,) int64 class indices below `classes`.
        classes: K.
        l2: the penalty.
        axes: principal axes of x or of a larger set, where they are known already.
        start: where to start from, a fit to the same classes; otherwise zero weights.
        tolerance: largest component of the gradient, in those coordinates, at which the search ends.
    """
    axes = axes or principal_axes(x)
    present, labels = y.unique(return_inverse=True)
    priors = torch.bincount(labels) / len(labels)
    curvature = (priors * (1 - priors)).clamp(min=1e-6)  # a lone class has none
    to_weight, to_bias = (axes.power.unsqueeze(1) * curvature + l2).rsqrt(), curvature.rsqrt()
    v, u = torch.zeros(x.shape[1], len(present)), priors.log() / to_bias  # the optimum of an infinite penalty
    if start is not None:
        v, u = axes.directions.T @ start.weight[:, present] / to_weight, start.bias[present] / to_bias
    v.requires_grad_()
    u.requires_grad_()
    optimizer = LBFGS(
        [v, u],
        max_iter=MAX_ITERATIONS,
        tolerance_grad=tolerance,
        tolerance_change=1e-8,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        weight = axes.directions @ (to_weight * v)
        value = F.cross_entropy(torch.addmm(to_bias * u, x, weight), labels) + l2 / 2 * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        weight, bias = torch.zeros(x.shape[1], classes), torch.full((classes,), -torch.inf)
        weight[:, present] = axes.directions @ (to_weight * v)
        bias[present] = to_bias * u
    return Probe(weight, bias, l2)


def select_softmax(x: Tensor, y: Tensor, classes: int, held_out: Tensor) -> Probe:
    """Softmax regression on all rows, with the penalty of the smallest cross-entropy on held-out rows.

    Penalties are tried from the strongest on until the cross-entropy rises: weaker ones only overfit more, and take the
    longest to fit.

    Args:
        x: (n, D) scaled features, float32.
        y: (n,) int64 class indices below `classes`.
        classes: K.
        held_out: (n,) bool, the rows that choose the penalty.
    """
    basis = None
    if len(x) < x.shape[1]:  # the best weights are then sums of rows: look for them among those, which are fewer
        basis = torch.linalg.qr(x.T).Q
        x = x @ basis
    axes = principal_axes(x)
    x_fit, y_fit = x[~held_out], y[~held_out]
    # A class that the fit has not seen costs every penalty an infinite amount: it says nothing about which is best.
    choosing = held_out & torch.isin(y, y_fit)
    x_held, y_held = x[choosing], y[choosing]
    best: Probe | None = None
    lowest = torch.inf
    for l2 in L2_GRID:
        probe = fit_softmax(x_fit, y_fit, classes, l2, axes, best, tolerance=1e-3)
        loss = float(F.cross_entropy(probe(x_held), y_held))
        if best is not None and not loss < lowest:
            break
        best, lowest = probe, loss
    assert best is not None  # the grid is not empty
    same_classes = len(y_fit.unique()) == len(y.unique())
    chosen = fit_softmax(x, y, classes, best.l2, axes, best if same_classes else None)
    return chosen if basis is None else replace(chosen, weight=basis @ chosen.weight)
