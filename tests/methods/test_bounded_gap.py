"""The coupling with a gap that cannot undo the labels: its size, its direction, its limits."""

import copy

import pytest
import torch

from rlhf_bilevel.baselines import incumbent, pebble
from rlhf_bilevel.bilevel.penalty import bounded, value
from rlhf_bilevel.methods import penalty
from rlhf_bilevel.training.loop import train
from rlhf_bilevel.utils.serialization import digest
from tests.conftest import build
from tests.methods.test_methods import best_responses, flat, fresh, gradient, torn


def parts(seed: int) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(n, generator=rng, dtype=torch.double).requires_grad_() for n in (3, 4))
    loss = x.square().sum() + (x[0] * y).sum() + 0.1 * y.square().sum()
    gap = (x.prod() + 5 * y.sin()).sum() * 3
    return loss, gap, [x, y]


@pytest.mark.parametrize("share", [0.1, 0.5, 1e9])
@pytest.mark.parametrize("seed", range(5))
def test_the_gaps_part_is_its_share_of_the_losss_at_most(seed: int, share: float) -> None:
    loss, gap, x = parts(seed)
    total, norms, scale = bounded(loss, gap, x, (0.0, 0.0), share, surgery=False)
    own, theirs = flat(loss, x), flat(gap, x)
    assert norms == pytest.approx((own.norm().item(), theirs.norm().item()))
    assert scale == pytest.approx(min(1, share * own.norm().item() / theirs.norm().item()))
    assert torch.allclose(flat(total, x), own + scale * theirs)


@pytest.mark.parametrize("seed", range(8))
def test_surgery_leaves_nothing_of_it_against_the_loss_and_the_rest_as_it_is(seed: int) -> None:
    loss, gap, x = parts(seed)
    own, theirs = flat(loss, x), flat(gap, x)
    total, _, scale = bounded(loss, gap, x, (0.0, 0.0), 1e9, surgery=True)
    left = (flat(total, x) - own) / scale
    assert left @ own >= -1e-9 * own.norm() * theirs.norm()
    across = theirs - (theirs @ own) / (own @ own) * own
    assert torch.allclose(left - (left @ own) / (own @ own) * own, across)
    if theirs @ own >= 0:
        assert torch.allclose(left, theirs)


def test_norms_are_running_means() -> None:
    loss, gap, x = parts(0)
    _, norms, _ = bounded(loss, gap, x, (2.0, 3.0), 1.0, surgery=False)
    own, theirs = flat(loss, x).norm().item(), flat(gap, x).norm().item()
    assert norms == pytest.approx((0.9 * 2 + 0.1 * own, 0.9 * 3 + 0.1 * theirs))


@pytest.mark.slow
@pytest.mark.parametrize("sides", ["one", "forward", "two"])
def test_with_a_share_without_bound_it_is_the_penalty_as_it_was(sides: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = torn(sides)
    pair = best_responses(run)
    monkeypatch.setattr(penalty, "sample_visits", lambda run: pair)
    plain = gradient(run, penalty.reward_loss)
    run.options = run.options.model_copy(update={"gap_share": 1e9})
    assert torch.allclose(gradient(run, penalty.reward_loss), plain, atol=1e-6)
    run.options = run.options.model_copy(update={"gap_share": 0.5})
    run.state.memory.clear()
    own = gradient(run, pebble.reward_loss)
    assert (gradient(run, penalty.reward_loss) - own).norm() <= 0.5 * own.norm() * (1 + 1e-5)


@pytest.mark.slow
def test_the_weight_of_the_upper_objective_is_in_what_the_learner_sees_and_not_in_the_gap() -> None:
    run = torn("one")
    obs, act = run.store.obs[:20], run.store.act[:20]
    run.options = run.options.model_copy(update={"upper_weight": 2.5})
    seen = penalty.rewards(run)[1](obs, act)
    assert torch.allclose(seen, run.reward(obs, act) - 2.5 * run.options.sigma * run.state.cost(obs, act), atol=1e-5)


@pytest.mark.slow
def test_from_the_last_label_on_the_second_learner_is_careful() -> None:
    run = fresh("penalty", sides="forward", careful_from="last_label")
    assert len(run.prefs) == run.config.labels and penalty.sides(run) == (0.0, -run.options.sigma)
    run.config = run.config.model_copy(update={"labels": 1000})
    assert penalty.sides(run) == (0.0, run.options.sigma)


@pytest.mark.slow
def test_a_forked_response_is_a_copy_of_the_agent_and_draws_its_batches() -> None:
    run = build("penalty", total_timesteps=160, fork_response=True)
    list(train(run))
    penalty.update_estimates(run)
    one, other = run.learners
    ours, theirs = (copy.deepcopy(each.state_dict()) for each in (one, other))
    assert digest(ours["modules"]) == digest(theirs["modules"])
    assert torch.equal(one._view.sample(16)[0], other._view.sample(16)[0])  # type: ignore[attr-defined]


def test_forked_responses_come_out_equal_where_there_is_no_cost() -> None:
    """With the same batches and the same noise they differ by the cost alone."""
    run = build("penalty", total_timesteps=160, use_cost=False)
    list(train(run))
    run.options = run.options.model_copy(update={"fork_response": True})
    penalty.update_estimates(run)
    run.improve(5, run.step)
    one, other = (each.model.policy.state_dict() for each in run.learners)  # type: ignore[attr-defined]
    for name in one:  # rewards that were computed in other batches differ in their last bits
        assert torch.allclose(one[name], other[name], atol=1e-5), name


@pytest.mark.slow
def test_the_incumbents_gradient_is_the_labels_and_the_bounded_gap() -> None:
    run = fresh("incumbent")
    state = run.rng["visits"].bit_generator.state
    run.state.clear()
    got = gradient(run, incumbent.reward_loss)
    run.rng["visits"].bit_generator.state = state
    o = run.options
    episodes = run.store.episodes(0, run.on_policy_since)[-o.visit_episodes :]
    visits = run.store.sample_visits(episodes, o.visit_batch, o.visit_discount, run.config.gamma, run.rng["visits"])
    gap = (value(run.reward, visits) - value(run.reward, incumbent.reference(run))) / o.sigma
    own, theirs = gradient(run, pebble.reward_loss), flat(gap, run.reward.parameters())
    scale = min(1, o.gap_share * own.norm().item() / theirs.norm().item())
    assert torch.allclose(got, own + scale * theirs, atol=1e-6) and (got - own).norm() > 0


def test_the_reference_is_the_best_labelled_segments() -> None:
    run = fresh("incumbent", anchor_segments=3)
    labelled = run.prefs.segments()
    best = run.reward(labelled.obs, labelled.act).sum(-1).topk(3).indices
    visits = incumbent.reference(run)
    assert torch.equal(visits.obs, labelled.obs[best].flatten(0, 1))
    assert visits.weight.sum().item() == pytest.approx(1 / (1 - run.config.gamma), rel=1e-5)
