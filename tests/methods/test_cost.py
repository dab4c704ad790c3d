"""The learnt cost against the exact derivative of the upper objective on a table, for both objectives and sources."""

import pytest
import torch

from rlhf_bilevel.bilevel import tabular
from rlhf_bilevel.bilevel.objectives import preference_loss, win_rate
from rlhf_bilevel.config import Config
from rlhf_bilevel.methods.cost import CostOptions, LearnedCost, label_targets, posterior_targets
from rlhf_bilevel.rewards.bradley_terry import cross_entropy, logits
from rlhf_bilevel.types import Preferences, Queries, Segments

STATES, ACTIONS, PAIRS = 4, 3, 30_000


@pytest.mark.parametrize("source", ["labels", pytest.param("posterior", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["preference_loss", pytest.param("win_rate", marks=pytest.mark.slow)])
def test_learnt_cost_is_the_exact_derivative_up_to_a_constant(kind: str, source: str) -> None:
    rng = torch.Generator().manual_seed(1)
    mdp = tabular.random_mdp(rng, STATES, ACTIONS)
    truth = tabular.table_reward(2 * torch.randn(STATES, ACTIONS, generator=rng, dtype=torch.float64))
    # The posterior estimator can only be right where the ensemble is: it takes the teacher's place there
    guess = tabular.table_reward(torch.randn(STATES, ACTIONS, generator=rng, dtype=torch.float64))
    reward = guess if source == "labels" else truth
    visits = tabular.visits(mdp, mdp.reference)
    weight = 2.0
    objective = preference_loss(truth) if kind == "preference_loss" else win_rate(truth, visits, visits, weight)
    exact = tabular.exact_cost(objective, reward, visits)

    config = Config(total_timesteps=1, segment_length=1, gamma=mdp.gamma)
    options = CostOptions(
        objective=kind, win_weight=weight, cost=source, cost_pairs=512, cost_hidden=(32,), cost_learning_rate=1e-2
    )
    share = visits.weight / visits.weight.sum()
    drawn = (torch.multinomial(share, PAIRS, replacement=True, generator=rng) for _ in range(2))
    queries = Queries(*(Segments(visits.obs[i, None], visits.act[i, None], torch.zeros(PAIRS, 1)) for i in drawn))
    if source == "labels":
        label = torch.bernoulli(logits(truth, queries).sigmoid(), generator=rng)
        answers = Preferences(*queries, label)
        targets = label_targets(options, answers, cross_entropy(logits(reward, queries), label))
    else:
        targets = posterior_targets(options, lambda obs, act: reward(obs, act)[None], queries)

    cost = LearnedCost(STATES, ACTIONS, config, options, rng).double()
    cost.fit(queries, targets, steps=1200)
    with torch.no_grad():
        learnt = cost(visits.obs, visits.act)
    learnt = learnt - (share * learnt).sum()
    error = (share * (learnt - exact).square()).sum().sqrt() / (share * exact.square()).sum().sqrt()
    assert error < 0.15  # the estimate is of the right size and sign, not only correlated
