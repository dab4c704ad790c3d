"""RIME: labels that the reward finds too surprising are left out, and the most surprising are turned [Cheng 2024].

With k = -log P(label) under the members' mean preference, a pair is

    trusted     where k < -log rho + alpha rho + min(beta_t s, 3)    rho, s: largest k and variance of trusted pairs
    flipped     where k > -log tau                                   beta_t falls from beta to beta_least

phi descends the cross-entropy of trusted pairs and, with the label 1 - y, of flipped ones. Before the first label the
reward is fitted to the normalised state entropy of pre-training (warm start), and the critics are kept.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy

from rlhf_bilevel.algorithm import Method, Run
from rlhf_bilevel.config import Count, Fraction, Options, Size, Weight
from rlhf_bilevel.explore import entropy_signal
from rlhf_bilevel.preference import cross_entropy
from rlhf_bilevel.types import Preferences


class RimeOptions(Options):
    denoise: bool = True
    alpha: Weight = 0.5
    beta: Weight = 3.0
    beta_least: Weight = 1.0
    beta_epochs: Size = 60  # until beta_t is at its least; 600 on Meta-World
    tau: Fraction = 1e-3  # a label less likely than this is turned
    warm_updates: Count = 5  # gradient steps of the warm start per step of pre-training


def threshold(run: Run) -> float:
    o, m = run.options, run.memory
    beta = max(o.beta_least, o.beta - (o.beta - o.beta_least) * m.get("epochs", 0.0) / o.beta_epochs)
    rho = m.get("rho", 0.0)
    return -math.log(rho + 1e-8) + o.alpha * rho + min(beta * m.get("variance", 1.0), 3.0)


def remember(memory: dict[str, float], trusted: Tensor, share: float) -> None:
    """The running statistics of k on trusted pairs (N,), of which ``share`` of an epoch has been seen."""
    memory["epochs"] = memory.get("epochs", 0.0) + share
    if not len(trusted):
        return
    seen, new = memory.get("seen", 0.0), len(trusted)
    delta = trusted.mean().item() - memory.get("mean", 0.0)
    between = delta**2 * seen * new / (seen + new)
    within = memory.get("variance", 1.0) * seen + trusted.var(correction=0).item() * new
    memory["variance"], memory["seen"] = (within + between) / (seen + new), seen + new
    memory["mean"] = memory.get("mean", 0.0) + 0.1 * delta
    memory["rho"] = memory.get("rho", 0.0) + 0.1 * (trusted.max().item() - memory.get("rho", 0.0))


def upper(run: Run, batch: Preferences, logits: Tensor) -> Tensor:
    if not run.options.denoise:
        return cross_entropy(logits, batch.label).mean()
    surprise = binary_cross_entropy(logits.detach().sigmoid().mean(0), batch.label, reduction="none")  # (B,)
    trusted, flipped = surprise < threshold(run), surprise > -math.log(run.options.tau)
    remember(run.memory, surprise[trusted], len(surprise) / len(run.prefs))
    run.memory |= {"trusted": trusted.float().mean().item(), "flipped": flipped.float().mean().item()}
    loss = cross_entropy(logits, torch.where(flipped, 1 - batch.label, batch.label))[:, trusted | flipped]
    return loss.sum() / max(1, loss.numel())


def warm_start(run: Run) -> None:
    c, entropy = run.config, entropy_signal(run.store, run.config, run.rng["entropy"])
    optimizer = torch.optim.Adam(run.reward.parameters(), c.reward_learning_rate)
    for _ in range(run.options.warm_updates * c.pretrain_steps):
        rows = torch.from_numpy(run.rng["method"].integers(run.store.size, size=c.batch))
        novelty = entropy(rows)
        novelty = novelty - novelty.mean()
        target = novelty / novelty.abs().max().clamp_min(1e-8)
        loss = (run.reward.members(run.store.obs[rows], run.store.act[rows]) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


RIME = Method(
    "rime",
    learners=1,
    sees=lambda run: [run.store.learned(run.reward)],
    upper=upper,
    prepare=warm_start,
    diagnose=lambda run: {f"rime/{key}": run.memory[key] for key in ("trusted", "flipped") if key in run.memory},
    settings={"reset_critics": False},
    options=RimeOptions,
)
