"""The experiments with few labels: posterior, information, responses, labels and gaps, each against its definition."""

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.rows import read
from benchmarks.theory import careful, coupling, exploring
from benchmarks.theory.coupling import GAMMA, PAIRS, Pairs, Worlds, cross_entropy, differences, sample
from benchmarks.theory.exploring import PRECISION, entropy, fit, information, posterior, respond

NUMBER = 40


@pytest.fixture(scope="module")
def worlds() -> Worlds:
    return coupling.draw(0, range(2), 0.7)


@pytest.fixture(scope="module")
def labels(worlds: Worlds) -> Pairs:
    share, teacher = worlds.visits(worlds.uniform()), coupling.answers(worlds, 0.0)
    return sample(teacher, share, NUMBER, [coupling.generator(1, n, 2) for n in range(2)])


@pytest.fixture(scope="module")
def reward(labels: Pairs) -> torch.Tensor:
    return fit(labels)


def test_posterior_is_the_inverse_curvature_of_the_log_posterior(labels: Pairs, reward: torch.Tensor) -> None:
    def loss(x: torch.Tensor) -> torch.Tensor:
        return (cross_entropy(x[None], Pairs(*(part[:1] for part in labels))) + PRECISION * x.square().sum() / 2).sum()

    exact = torch.linalg.inv(torch.autograd.functional.hessian(loss, reward[0]))
    torch.testing.assert_close(posterior(reward, labels)[0], exact, rtol=1e-8, atol=1e-10)


def test_information_is_what_an_answer_tells_of_rewards_drawn_from_the_posterior(
    labels: Pairs, reward: torch.Tensor
) -> None:
    covariance = posterior(reward, labels)[:1]
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(4000, PAIRS, generator=rng, dtype=torch.float64)
    drawn = torch.sigmoid(differences(reward[0] + noise @ torch.linalg.cholesky(covariance[0]).T))
    sampled = entropy(drawn.mean(0)) - entropy(drawn).mean(0)
    told = information(reward[:1], covariance)[0]
    assert (told - sampled).abs().max() < 0.02 < 0.1 < told.max()  # nats; sigmoid(x / sqrt(1 + pi v / 8)) is not exact


@pytest.mark.parametrize("tilt", [40.0, -40.0])
def test_no_policy_nearby_answers_better(worlds: Worlds, labels: Pairs, reward: torch.Tensor, tilt: float) -> None:
    gained = information(reward, posterior(reward, labels))

    def worth(policy: torch.Tensor) -> torch.Tensor:  # J + tilt G
        states, visits = worlds.states(policy), worlds.visits(policy)
        kl = torch.xlogy(policy, policy * coupling.ACTIONS).sum(-1)
        share = (1 - GAMMA) * visits
        g = (share[:, None, :] @ gained @ share[..., None]).flatten()
        return (visits * reward).sum(-1) - coupling.BETA * (states * kl).sum(-1) + tilt * g

    policy = respond(worlds, reward, gained, tilt)
    best, rng = worth(policy), torch.Generator().manual_seed(0)
    assert (best > worth(worlds.best(reward))).all()
    for _ in range(20):
        noise = 0.3 * torch.randn(policy.shape, generator=rng, dtype=torch.float64)
        assert (worth(torch.softmax(policy.log() + noise, -1)) < best).all()


def test_labels_are_counted_and_the_most_telling_are_picked(worlds: Worlds, labels: Pairs) -> None:
    assert labels.asked.sum((1, 2)).tolist() == [NUMBER, NUMBER] and (labels.won <= labels.asked).all()
    share, teacher = worlds.visits(worlds.uniform()), coupling.answers(worlds, 0.0)
    score = torch.rand(teacher.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rngs = [coupling.generator(1, n, 2) for n in range(2)]
    picked = sample(teacher, share, NUMBER, rngs, score=score)
    drawn, chosen = ((part.asked * score).sum() / (2 * NUMBER) for part in (labels, picked))
    assert drawn < 0.65 and chosen > 0.9  # the tenth of uniform scores that is highest has a mean of .95


def test_the_gap_is_descended(labels: Pairs, reward: torch.Tensor) -> None:
    pull = torch.linspace(-1, 1, PAIRS, dtype=torch.float64).expand(2, -1)
    pulled = fit(labels, pull=pull).requires_grad_()
    whole = (cross_entropy(pulled, labels) + PRECISION * pulled.square().sum(-1) / 2 + (pull * pulled).sum(-1)).sum()
    (slope,) = torch.autograd.grad(whole, pulled)
    assert slope.abs().max() < 1e-8
    assert (pulled - reward).abs().max() > 0.1


@pytest.mark.slow
def test_an_experiment_has_every_method_in_every_world_and_the_same_luck() -> None:
    task = exploring.Task(0, range(2), "uniform", 20, "own")
    rows = exploring.solve(task)
    assert rows == exploring.solve(task)
    assert [row.mdp for row in rows] == [0, 1] and all(-1 < row.return_share <= 1 for row in rows)
    others = {m: exploring.solve(task._replace(method=m)) for m in exploring.METHODS}
    assert len({tuple(row.return_share for row in found) for found in others.values()}) == len(exploring.METHODS)


@pytest.mark.parametrize(("name", "experiment"), [("exploring", exploring), ("careful", careful)])
def test_the_docs_table_is_that_of_the_committed_results(name: str, experiment: Any) -> None:
    root = Path(__file__).parents[2]
    rows = read(root / f"benchmarks/results/theory-{name}.csv", experiment.Row)
    assert "\n".join(experiment.table(rows)) in (root / "docs/theory.md").read_text()


# Relative pessimism


def test_spread_is_the_standard_deviation_of_the_centred_posterior(labels: Pairs, reward: torch.Tensor) -> None:
    covariance = posterior(reward, labels)
    rng = torch.Generator().manual_seed(0)
    drawn = torch.randn(20_000, PAIRS, generator=rng, dtype=torch.float64) @ torch.linalg.cholesky(covariance[0]).T
    sampled = (drawn - drawn.mean(1, keepdim=True)).std(0)
    torch.testing.assert_close(careful.spread(reward, labels)[0], sampled, rtol=0.05, atol=0)


def test_the_best_labelled_steps_are_a_tenth_of_them(labels: Pairs, reward: torch.Tensor) -> None:
    every, best = careful.labelled(labels), careful.labelled(labels, reward)
    assert all(torch.allclose(shares.sum(-1), torch.ones(2).double()) for shares in (every, best))
    assert (0.1 * best <= every + 1e-12).all()
    for world in range(2):
        worst_taken = reward[world][best[world] > 0].min()
        assert (0.1 * best[world] >= every[world] - 1e-12)[(reward[world] > worst_taken) & (every[world] > 0)].all()


@pytest.mark.parametrize("other", ["labelled", "best"])
def test_a_fixed_reference_makes_a_convex_problem_that_is_solved(
    worlds: Worlds, labels: Pairs, reward: torch.Tensor, other: str
) -> None:
    weight = 3.0
    reference = careful.labelled(labels, reward if other == "best" else None)

    def loss(table: torch.Tensor) -> torch.Tensor:
        policy = worlds.best(table)
        kl = torch.xlogy(policy, policy * coupling.ACTIONS).sum(-1)
        best = (worlds.visits(policy) * table).sum(-1) - coupling.BETA * (worlds.states(policy) * kl).sum(-1)
        gap = (1 - GAMMA) * best - (reference * table).sum(-1)
        return cross_entropy(table, labels) + PRECISION * table.square().sum(-1) / 2 + weight * gap

    found = careful.careful(worlds, careful.Method(other, weight), labels)
    gained = loss(reward) - loss(found)
    assert (gained > 0.05).all()
    rng = torch.Generator().manual_seed(0)
    for size in (0.03, 0.1, 0.3):
        for _ in range(10):
            near = found + size * torch.randn(found.shape, generator=rng, dtype=torch.float64)
            assert (loss(near) > loss(found) - 0.05 * gained).all()
    assert (loss((found + reward) / 2) <= (loss(found) + loss(reward)) / 2).all()


def test_without_gap_and_caution_every_careful_method_is_own(worlds: Worlds) -> None:
    nothing = [careful.Method(), careful.Method("learned", 0.0, 0.0), careful.Method("best", 1e-9)]
    rngs = [coupling.generator(1, n, 2) for n in range(2)]
    own, *others = careful.learn(worlds, nothing, NUMBER, rngs)
    assert all(torch.allclose(policy, own, atol=1e-6) for policy in others)
