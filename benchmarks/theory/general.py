"""General bilevel problems (Theorem 2) with Polyak-Lojasiewicz lower levels, known through unbiased samples.

``quadratic`` and ``sine`` (nonconcave) are the library's exact problems with Gaussian noise on every gradient: the mean
of n such samples is one draw of n times less variance, however large n is. ``ridge`` and ``logistic`` learn a weight
decay for each feature, by the loss on held-out rows, on data that scikit-learn ships; a sample is a row of either set,
drawn with replacement, and a batch the counts of rows.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import Tensor
from torch.nn.functional import softplus

from benchmarks.theory.problem import Batch, Function, Upper, slope, steps
from rlhf_bilevel.bilevel.problems import Quadratic, Sine


@dataclass(frozen=True)
class Sampled:
    """Two functions of x and y, as a ``Batch``."""

    lower: Function
    upper: Function


class General:
    """J, f, their best response and grad F in closed form, scaled; ``batch`` says how they are seen."""

    box = (-6.0, 6.0)

    def __init__(self, lower: Function, upper: Function, respond: Upper, derivative: Upper, x: Tensor, y: Tensor):
        self.lower, self._upper, self.respond, self._derivative = lower, upper, respond, derivative
        self.x, self.y = x, y
        self.scale = 1 / derivative(x).norm(dim=-1)
        self.bends, self.condition, self.eta, self.joint = steps(self)

    def upper(self, x: Tensor, y: Tensor) -> Tensor:
        return self.scale * self._upper(x, y)

    def gradient(self, x: Tensor) -> Tensor:
        return self.scale[:, None] * self._derivative(x)

    def batch(self, x: Tensor, y: Tensor, count: int, rng: np.random.Generator, hessian: bool = False) -> Batch:
        raise NotImplementedError


class Noisy(General):
    """Samples whose gradients in x and y carry N(0, 1) noise in every element, those of f and of J."""

    def batch(self, x: Tensor, y: Tensor, count: int, rng: np.random.Generator, hessian: bool = False) -> Batch:
        def noisy(function: Function) -> Function:
            by_x, by_y = (torch.from_numpy(rng.standard_normal(z.shape)) / count**0.5 for z in (x, y))
            return lambda x, y: function(x, y) + (by_x * x).sum(-1) + (by_y * y).sum(-1)

        return Sampled(noisy(self.lower), noisy(self.upper))


def quadratic(seed: int, replicates: int) -> Noisy:
    """One ``problems.Quadratic`` with 3 upper and 5 lower variables, from as many starts as replicates."""
    rng = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, dtype=torch.float64)

    problem = Quadratic(normal(5, 3), normal(5), rho=0.3)

    def lower(x: Tensor, y: Tensor) -> Tensor:
        return -(y - x @ problem.A.T).square().sum(-1) / 2

    def upper(x: Tensor, y: Tensor) -> Tensor:
        return (y - problem.b).square().sum(-1) / 2 + problem.rho / 2 * x.square().sum(-1)

    def derivative(x: Tensor) -> Tensor:
        return torch.stack([problem.gradient(row) for row in x])

    return Noisy(lower, upper, lambda x: x @ problem.A.T, derivative, normal(replicates, 3), normal(replicates, 5))


def sine(seed: int, replicates: int) -> Noisy:
    """``problems.Sine`` from starts in [1, 2], where its lower level is not concave."""
    problem, x = Sine(), 1 + torch.rand((replicates, 1), generator=torch.Generator().manual_seed(seed)).double()

    def lower(x: Tensor, y: Tensor) -> Tensor:
        return problem.lower(x, y)[:, 0]

    def upper(x: Tensor, y: Tensor) -> Tensor:
        return problem.upper(x, y)[:, 0]

    def derivative(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return slope(problem.upper(x, -x), x)

    return Noisy(lower, upper, lambda x: -x, derivative, x, -x)


class Rows(General):
    """Generalised linear models, weight decay exp(x_j) / 2 on coefficient y_j; every replicate splits the rows anew.

    ``loss`` is of the linear predictor and the target, ``bend`` its second derivative in the former, for Newton.
    """

    box = (-6.0, 1.0)  # of log weight decays: above and below, they hardly change the predictions

    def __init__(
        self, data: np.ndarray, target: np.ndarray, loss: Function, bend: Function, seed: int, replicates: int
    ) -> None:
        rng, half = np.random.default_rng(seed), len(data) // 2
        orders = [rng.permutation(len(data)) for _ in range(replicates)]
        features, targets = (torch.from_numpy(np.stack([z[order] for order in orders])) for z in (data, target))
        self.loss, self.bend = loss, bend
        halves = slice(half), slice(half, 2 * half)
        self.rows = [(features[:, rows], targets[:, rows]) for rows in halves]
        even = torch.full((replicates, half), 1.0 / half, dtype=torch.float64)
        x = torch.full((replicates, data.shape[1]), -1.0, dtype=torch.float64)
        self._all, self._near = self._held_out(even), torch.zeros_like(x)
        super().__init__(self._training(even), self._all, self._newton, self._response, x, torch.zeros_like(x))

    def _training(self, weight: Tensor) -> Function:
        return lambda x, y: -self._mean(0, weight, y) - (x.exp() * y.square()).sum(-1) / 2

    def _held_out(self, weight: Tensor) -> Function:
        return lambda x, y: self._mean(1, weight, y)

    def _mean(self, which: int, weight: Tensor, y: Tensor) -> Tensor:
        features, targets = self.rows[which]
        return (weight * self.loss((features @ y[..., None])[..., 0], targets)).sum(-1)

    def _curvature(self, x: Tensor, y: Tensor) -> Tensor:
        """-d_yy J, (R, q, q)."""
        features, targets = self.rows[0]
        bend = self.bend((features @ y[..., None])[..., 0], targets)[..., None] / features.shape[1]
        return features.mT @ (bend * features) + torch.diag_embed(x.exp())

    def _newton(self, x: Tensor) -> Tensor:
        y = self._near  # the answer to the last question: the judge asks along a path
        for _ in range(50):
            y = y.requires_grad_()
            ascent = slope(self.lower(x, y), y)
            y = y.detach() + torch.linalg.solve(self._curvature(x, y.detach()), ascent)
            if ascent.abs().max() < 1e-9:  # quadratic convergence: what is left is of the order of its square
                self._near = y
                return y
        raise RuntimeError("Newton's method did not converge")

    def _response(self, x: Tensor) -> Tensor:
        """grad F by the implicit function theorem, as d_xy J = -diag(exp(x) y)."""
        y = self._newton(x).requires_grad_()
        return -x.exp() * y.detach() * torch.linalg.solve(self._curvature(x, y.detach()), slope(self._all(x, y), y))

    def batch(self, x: Tensor, y: Tensor, count: int, rng: np.random.Generator, hessian: bool = False) -> Batch:
        rows = self.rows[0][1].shape

        def weight() -> Tensor:
            drawn = rng.multinomial(count, np.full(rows[1], 1 / rows[1]), rows[0])
            return torch.from_numpy(drawn).double() / count

        held_out = cache(lambda: self._held_out(weight()))  # not drawn where nobody asks for f
        return Sampled(self._training(weight()), lambda x, y: self.scale * held_out()(x, y))


def _standard(z: np.ndarray) -> np.ndarray:
    return (z - z.mean(0)) / z.std(0)


def ridge(seed: int, replicates: int) -> Rows:
    """Disease progression of 442 patients by 10 features (Efron et al., 2004): squared error over 2."""
    data, target = load_diabetes(return_X_y=True)
    return Rows(
        _standard(data),
        _standard(target),
        lambda guess, y: (guess - y).square() / 2,
        lambda guess, y: torch.ones_like(guess),
        seed,
        replicates,
    )


def logistic(seed: int, replicates: int) -> Rows:
    """Malignant or benign, 569 tumours by the first 10 of 30 features (the means), as log-loss."""
    data, target = load_breast_cancer(return_X_y=True)
    signs = 2.0 * target - 1

    def bend(score: Tensor, sign: Tensor) -> Tensor:
        return torch.sigmoid(score) * torch.sigmoid(-score)

    return Rows(_standard(data[:, :10]), signs, lambda score, sign: softplus(-sign * score), bend, seed, replicates)
