"""RIME: surprising labels are left out, and the most surprising ones are turned [Cheng et al., ICML 2024].

    k           = -log P(label) under the members' mean preference, the surprise of a pair
    trusted     if k < -log rho + alpha rho + min(beta_t s, 3)
    flipped     if k > -log tau

    phi descends        CE of trusted pairs, and of flipped pairs with the label 1 - y
    the learner gets    mean_m r_m

rho and s are running estimates of the largest k and of the variance of k over trusted pairs. beta_t falls from beta to
beta_least. Before the first fit to labels, the reward is fitted to the normalised state entropy of pre-training (warm
start), and the critics are not reset.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from rlhf_bilevel.config import Options
from rlhf_bilevel.config.fields import Few, Fraction, Size, Weight
from rlhf_bilevel.rewards.bradley_terry import cross_entropy
from rlhf_bilevel.rewards.state_entropy import fit_entropy
from rlhf_bilevel.training.method import Method
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Preferences

FRESH = {"epochs": 0.0, "seen": 0.0, "mean": 0.0, "variance": 1.0, "rho": 0.0}  # the running statistics at the start


class RimeOptions(Options):
    """The published values. Without ``denoise`` all labels are trusted."""

    denoise: bool = True
    """Whether labels are filtered. Without it, all are trusted."""
    alpha: Weight = 0.5
    """alpha: weight of rho in the threshold."""
    beta: Weight = 3.0
    """beta_max: weight of the variance in the threshold, at the first epoch."""
    beta_least: Weight = 1.0
    """beta_min: the same after beta_epochs."""
    beta_epochs: Size = 60
    """Epochs over which it falls. The paper has 600 on Meta-World."""
    tau: Fraction = 1e-3
    """A label that is less probable than this is flipped."""
    warm_updates: Few = 5
    """Gradient steps of the warm start for each step of pre-training."""


def threshold(o: RimeOptions, memory: dict[str, float]) -> float:
    """The surprise in nats below which a pair is trusted, by the running statistics."""
    m = FRESH | memory
    beta = max(o.beta_least, o.beta - (o.beta - o.beta_least) * m["epochs"] / o.beta_epochs)
    return -math.log(m["rho"] + 1e-8) + o.alpha * m["rho"] + min(beta * m["variance"], 3.0)


def remember(memory: dict[str, float], trusted: Tensor) -> dict[str, float]:
    """The running statistics after the surprises ``trusted`` (N,) of more trusted pairs.

    The variance is pooled over all pairs; mean and rho move a tenth of the way to the new values.
    """
    m, new = FRESH | memory, len(trusted)
    if not new:
        return m
    delta, total = trusted.mean().item() - m["mean"], m["seen"] + new
    squares = m["variance"] * m["seen"] + trusted.var(correction=0).item() * new + delta**2 * m["seen"] * new / total
    rho = m["rho"] + 0.1 * (trusted.max().item() - m["rho"])
    return m | {"seen": total, "variance": squares / total, "mean": m["mean"] + 0.1 * delta, "rho": rho}


def reward_loss(run: Run, batch: Preferences, logits: Tensor) -> Tensor:
    """The mean cross-entropy of trusted and flipped pairs, in nats. ``logits`` are (M, B)."""
    if not run.options.denoise:
        return cross_entropy(logits, batch.label).mean()
    surprise = binary_cross_entropy(logits.detach().sigmoid().mean(0), batch.label, reduction="none")  # (B,)
    trusted, flipped = surprise < threshold(run.options, run.state), surprise > -math.log(run.options.tau)
    run.state |= remember(run.state, surprise[trusted])
    run.state["epochs"] += len(surprise) / len(run.prefs)
    run.state |= {"trusted": trusted.float().mean().item(), "flipped": flipped.float().mean().item()}
    loss = cross_entropy(logits, torch.where(flipped, 1 - batch.label, batch.label))[:, trusted | flipped]
    return loss.sum() / max(1, loss.numel())


def warm_start(run: Run) -> None:
    """Fits the reward to state entropy, ``warm_updates`` gradient steps for each step of pre-training."""
    steps = run.options.warm_updates * run.config.pretrain_steps
    fit_entropy(run.reward, run.store, run.config, steps, (run.rng["entropy"], run.rng["method"]))


RIME = Method(
    "rime",
    learners=1,
    learner_rewards=lambda run: [run.store.learned(run.reward)],
    reward_loss=reward_loss,
    diagnose=lambda run: {f"rime/{key}": run.state[key] for key in run.state.keys() & {"trusted", "flipped"}},
    prepare=warm_start,
    settings={"reset_critics": False},
    options=RimeOptions,
)
