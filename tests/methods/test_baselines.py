"""Each published method does what sets it apart, and nothing else: with that switched off it is PEBBLE, bit for bit."""

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from rlhf_bilevel import Agent
from rlhf_bilevel.baselines import hypergradient, mrn, parl, pebble, qpa, rime, rune, surf
from rlhf_bilevel.config.names import nest_options
from rlhf_bilevel.learners.sb3_tools import drawing_from
from rlhf_bilevel.methods import detached
from rlhf_bilevel.registries import METHODS
from rlhf_bilevel.rewards.bradley_terry import crops, cross_entropy, logits
from rlhf_bilevel.rewards.state_entropy import state_entropy
from rlhf_bilevel.training.loop import train
from rlhf_bilevel.training.run import Run
from rlhf_bilevel.types import Preferences
from tests.conftest import SMALL, build
from tests.methods.test_methods import flat, fresh, gradient, same_weights, trained

OFF: dict[str, dict[str, Any]] = {
    "surf": {"weight": 0, "shortest": 1, "longest": 1},
    "rune": {"beta": 0},
    "mrn": {"weight": 0},
    "qpa": {"copies": 0},
    "rime": {"denoise": False, "warm_updates": 0},
    "parl": {"weight": 0},
    "hypergradient": {"gradient_share": 0},
    "detached": {"weight": 0},
}

SHORT: dict[str, Any] = {
    "total_timesteps": 80, "train_freq": 4, "refresh_every": 20, "labels": 16, "reward_epochs": 2
}  # fmt: skip


@pytest.mark.parametrize("name", OFF)
def test_what_sets_it_apart_switched_off_leaves_pebble_bit_for_bit(name: str) -> None:
    settings = dict(SHORT)
    if name == "surf":  # whose crops have a graph of their own: gradients would be added in another order
        settings["reward_damping"] = 0
    plain = trained("pebble", **settings, **METHODS[name].settings)
    assert same_weights(plain, fresh(name, options=OFF[name], **settings))
    assert not same_weights(plain, fresh(name, **settings))


@pytest.fixture(scope="module")
def run() -> Run:
    """Of PEBBLE, at the end, in a refresh."""
    return fresh("pebble")


def of(run: Run, name: str, **options: Any) -> Run:
    """The same run as one of another method: nothing in it is shared that moves."""
    other = copy.copy(run)
    other.method, other.options = METHODS[name], METHODS[name].options(**options)
    other.state = METHODS[name].state(other) if run.method.name != name else copy.deepcopy(run.state)
    other.rng = {purpose: np.random.default_rng(0) for purpose in run.rng}
    return other


def answers(run: Run, count: int = 40) -> tuple[Preferences, Tensor]:
    """Labelled pairs and the members' logits on them."""
    batch = run.prefs[:count]
    return batch, logits(run.reward.members, batch)


def slope(run: Run, loss: Tensor) -> Tensor:
    return flat(loss, run.reward.parameters())


# Crops


def test_crops_are_runs_of_steps_of_one_length_within_both_segments() -> None:
    steps, rng = 10, np.random.default_rng(0)
    powers = (2.0 ** torch.arange(steps)).expand(500, steps)  # a sum tells which steps are in it
    zero, ones = torch.zeros(500, steps), torch.ones(500, steps)
    seen = set()
    for total in crops(powers, zero, (0.3, 0.5), rng)[0].int().tolist():
        bits = f"{total:b}"
        length = bits.count("1")
        assert bits.rstrip("0") == "1" * length  # without a gap
        seen.add((len(bits) - length, length))
    assert seen == {(start, length) for length in (3, 4, 5) for start in range(steps - length + 1)}
    assert not crops(ones, ones, (0.3, 0.9), rng, copies=3).any()  # both are cut to one length


def test_crops_keep_leading_axes_and_are_the_pairs_where_nothing_is_cut() -> None:
    rng = torch.Generator().manual_seed(0)
    first, second = torch.rand(2, 3, 7, 5, generator=rng).unbind()
    cut = crops(first, second, (1, 1), np.random.default_rng(0), copies=4)
    assert cut.shape == (4, 3, 7) and torch.equal(cut, (first.sum(-1) - second.sum(-1)).expand(4, 3, 7))


# SURF


def test_surf_labels_what_each_member_is_sure_of_and_nothing_else() -> None:
    border = math.log(0.9 / 0.1)
    label, sure = surf.pseudo_labels(torch.tensor([[border + 0.01, border - 0.01], [-border - 0.01, 0.0]]), 0.9)
    assert sure.tolist() == [[1, 0], [1, 0]] and label.tolist() == [[1, 1], [0, 0]]


def test_surf_adds_the_loss_of_sure_unlabelled_pairs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the formula pair by pair, with nothing cut; without a gradient through the pseudo-labels."""
    one = of(run, "surf", shortest=1, longest=1, threshold=0.6, weight=0.7)
    pairs = run.sample_pairs(32)
    monkeypatch.setattr(one, "sample_pairs", lambda count: pairs)
    batch, output = answers(run)
    expected = cross_entropy(output, batch.label).mean()
    sure = 0
    for member in logits(run.reward.members, pairs):
        for value in member:
            p = value.sigmoid()
            if max(p, 1 - p) >= 0.6:
                sure += 1
                expected = expected - 0.7 * torch.log(torch.max(p, 1 - p)) / (3 * 32)
    assert 0 < sure < 3 * 32
    loss = surf.reward_loss(one, batch, output)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.allclose(slope(run, loss), slope(run, expected), rtol=1e-3, atol=1e-6)


# RUNE


def test_rune_sees_the_mean_and_a_falling_share_of_the_members_spread(run: Run) -> None:
    one, rows = of(run, "rune", beta=0.5, rho=0.01), torch.arange(30)
    (signal,) = rune.RUNE.learner_rewards(one)
    members = run.reward.members(run.store.obs[rows], run.store.act[rows]).detach().numpy()
    for step in (0, 7, 300):
        one.step = step
        expected = members.mean(0) + 0.5 * 0.99**step * members.std(0)
        assert np.allclose(signal(rows), expected, atol=1e-6)
    assert members.std(0).max() > 0.01


# Detached critic


def test_the_detached_critic_moves_residuals_and_takes_no_gradient(run: Run) -> None:
    """d loss / d logit is sigmoid(logit + weight dQ) - y, in closed form."""
    batch, output = answers(run)
    output = output.detach().requires_grad_()
    critic = run.learners[0].model.critic  # type: ignore[attr-defined]

    def q(part: Any) -> Tensor:  # by a loop over the steps
        steps = [torch.stack(critic(part.obs[:, t], part.act[:, t])).min(0).values for t in range(part.obs.shape[1])]
        return torch.cat(steps, 1).mean(1).detach()

    one = of(run, "detached", weight=0.3)
    (got,) = torch.autograd.grad(detached.reward_loss(one, batch, output), output)
    shifted = output.detach() + 0.3 * (q(batch.first) - q(batch.second))
    assert torch.allclose(got, (shifted.sigmoid() - batch.label) / output.numel(), atol=1e-6)
    plain = pebble.reward_loss(run, batch, output)
    assert not torch.allclose(got, torch.autograd.grad(plain, output)[0], atol=1e-5)


# QPA


def test_qpa_averages_over_crops_and_asks_the_newest_policy(run: Run) -> None:
    batch, output = answers(run)
    whole = qpa.reward_loss(of(run, "qpa", copies=3, shortest=1, longest=1), batch, output)
    assert whole.item() == pytest.approx(pebble.reward_loss(run, batch, output).item(), rel=1e-6)
    losses = [qpa.reward_loss(of(run, "qpa", copies=copies), batch, output).item() for copies in (1, 2000)]
    first, second = (run.reward.members(part.obs, part.act) for part in batch[:2])
    means = []
    for length in (7, 8, 9):  # the exact mean over all crops
        starts = range(10 - length + 1)
        sums = [[part[..., at : at + length].sum(-1) for at in starts] for part in (first, second)]
        terms = [cross_entropy(a - b, batch.label).mean() for a, b in itertools.product(*sums)]
        means.append(torch.stack(terms).mean().item())
    assert losses[1] == pytest.approx(np.mean(means), rel=5e-3) and losses[0] != pytest.approx(losses[1], rel=1e-4)
    config = trained("qpa").config
    assert (config.policy_aligned, config.newest_share, config.ensemble_size) == (True, 0.5, 1)


# RIME


def test_rime_trusts_and_flips_by_its_thresholds(run: Run) -> None:
    """Logits by hand: a likely label, a doubtful one, and one that is all but impossible."""
    one = of(run, "rime", tau=1e-3)
    one.state |= {"rho": 0.5, "variance": 0.2, "seen": 10.0, "epochs": 30.0}  # beta_t is 2
    limit = -math.log(0.5) + 0.25 + 2 * 0.2  # 1.34
    assert rime.threshold(one.options, one.state) == pytest.approx(limit, rel=1e-6)
    batch = run.prefs[:3]._replace(label=torch.ones(3))
    output = torch.tensor([2.0, -2.0, -9.0]).expand(3, 3).clone().requires_grad_()  # surprises .13, 2.1, 9
    (got,) = torch.autograd.grad(rime.reward_loss(one, batch, output), output)
    assert torch.allclose(got[0], torch.tensor([torch.sigmoid(torch.tensor(2.0)) - 1, 0, math.exp(-9)]) / 6, atol=1e-5)
    assert (one.state["trusted"], one.state["flipped"]) == pytest.approx((1 / 3, 1 / 3))


def test_rime_remembers_the_surprise_of_what_it_trusts() -> None:
    """Its variance is that of all trusted so far, as numpy has it, where their means are alike."""
    rng, memory, seen = np.random.default_rng(0), dict[str, float](), []
    for _ in range(200):
        seen.append(torch.from_numpy(rng.exponential(size=50)))
        seen[-1] /= seen[-1].mean()
        memory = rime.remember(memory, seen[-1])
    assert memory["mean"] == pytest.approx(1, abs=1e-3)
    assert memory["variance"] == pytest.approx(np.var(torch.cat(seen).numpy()), rel=0.05)
    assert memory["seen"] == 10_000 and rime.remember(memory, torch.zeros(0)) == memory


def test_rime_learns_from_labels_of_which_a_third_is_wrong(run: Run) -> None:
    """Of a reward of one parameter, whose true slope is large, as every right answer is certain."""
    right, pairs = {}, run.sample_pairs(400)
    for name in ("pebble", "rime"):
        one = of(run, name, **({"beta_epochs": 1} if name == "rime" else {}))
        rng = torch.Generator().manual_seed(0)
        truth = torch.randn(400, generator=rng) * 4
        noisy = torch.where(torch.rand(400, generator=rng) < 0.3, truth < 0, truth > 0).float()
        weight = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.Adam([weight], 0.1)
        batch = Preferences(*pairs, label=noisy)
        for _ in range(200):
            loss = one.method.reward_loss(one, batch, (weight * truth).expand(3, -1))  # type: ignore[misc]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        right[name] = weight.item()
    assert right["rime"] > 1.5 * right["pebble"] > 0


def test_rimes_warm_start_fits_the_state_entropy_and_spares_the_labels_optimizer() -> None:
    one = build("rime", total_timesteps=300, options={"warm_updates": 20}, train_freq=4)
    for _ in train(one):
        if one.step == one.on_policy_since - 1:
            break
    rows = torch.arange(one.store.size)
    novelty = state_entropy(one.store.obs[rows], one.store.obs[rows], one.config.neighbour)
    target = (novelty - novelty.mean()) / (novelty - novelty.mean()).abs().max()

    def error() -> float:
        return (one.reward(one.store.obs[rows], one.store.act[rows]) - target).square().mean().item()

    before = error()
    rime.warm_start(one)
    assert error() < 0.8 * min(before, target.square().mean().item())  # better than no reward at all
    assert not one.learnt


# PARL


def test_score_products_are_inner_products_of_scores(run: Run) -> None:
    """Against every score by itself."""
    learner, store = run.learners[0], run.store
    actor = learner.model.actor  # type: ignore[attr-defined]

    def score(row: int) -> Tensor:
        mean, log_std, _ = actor.get_action_dist_params(store.obs[row : row + 1])
        gaussian = torch.distributions.Normal(mean, log_std.exp())
        raw = torch.atanh(store.act[row : row + 1].clamp(-0.9999, 0.9999))
        return flat(gaussian.log_prob(raw).sum(), actor.parameters())  # tanh's Jacobian has no parameter in it

    weight = torch.linspace(-1, 1, 20)
    direction = torch.stack([w * score(row) for row, w in zip(range(80, 100), weight, strict=True)]).sum(0)
    expected = torch.stack([score(row) @ direction for row in range(100, 130)])
    here, there = slice(100, 130), slice(80, 100)
    got = learner.score_products((store.obs[here], store.act[here]), (store.obs[there], store.act[there]), weight)
    assert torch.allclose(got, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_parls_gradient_is_that_of_the_loss_after_a_step_of_policy_gradient(run: Run) -> None:
    """<v, d2J/dtheta dphi>, differentiated in the policy first and in the reward then."""
    one, (batch, output) = of(run, "parl", weight=0.5), answers(run, 12)
    losses = cross_entropy(output, batch.label)
    plain = slope(one, losses.mean())
    extra = slope(one, parl.reward_loss(one, *answers(run, 12))) - plain
    actor = one.learners[0].model.actor  # type: ignore[attr-defined]
    weights = list(actor.parameters())

    def log_prob(obs: Tensor, act: Tensor) -> Tensor:
        mean, log_std, _ = actor.get_action_dist_params(obs.flatten(0, -2))
        law = torch.distributions.Normal(mean, log_std.exp())
        return law.log_prob(torch.atanh(act.flatten(0, -2).clamp(-0.9999, 0.9999))).sum(-1).reshape(obs.shape[:-1])

    # v, the slope of the mean loss where pairs are weighted by how much likelier a moved policy makes them
    pairs = sum(log_prob(part.obs, part.act).sum(-1) for part in batch[:2])  # (B,)
    per_pair = losses.detach().mean(0)
    ratio = (pairs - pairs.detach()).exp()  # type: ignore[union-attr]
    v = torch.autograd.grad(((per_pair - per_pair.mean()) * ratio).mean(), weights)
    j, episodes = torch.zeros(()), one.store.episodes(0, one.on_policy_since)[-one.options.visit_episodes :]
    for start, end in episodes:
        obs, act = one.store.obs[start:end], one.store.act[start:end]
        reward, likely = one.reward(obs, act), log_prob(obs, act)
        for t in range(end - start):
            j = j + one.config.gamma**t * reward[t] * likely[: t + 1].sum()
    along = sum((a * b).sum() for a, b in zip(v, torch.autograd.grad(j, weights, create_graph=True), strict=True))
    mixed = slope(one, along)  # type: ignore[arg-type]
    total = parl.credit(one, batch, per_pair, episodes).abs().sum()
    assert torch.allclose(extra, 0.5 * mixed / total, rtol=1e-2, atol=1e-3 * extra.abs().max().item())
    assert extra.norm() > 1e-3 * plain.norm()


# Hypergradient


@pytest.fixture(scope="module")
def answered() -> Run:
    """Of ``hypergradient``, at the end, in a refresh; its cost is fitted."""
    return fresh("hypergradient", total_timesteps=240, train_freq=4)


def written_out(run: Run) -> Tensor:
    """The answer's gradient with the sums as docs/methods/hypergradient.md has them, step by step, before its cap."""
    c, o, store = run.config, run.options, run.store
    episodes = store.episodes(0, run.on_policy_since)[-o.visit_episodes :]
    rows = [row for start, end in episodes for row in range(start, end)]
    with torch.no_grad():
        cost = run.state.cost(store.obs[rows], store.act[rows])
    columns = store.obs[rows], store.next_obs[rows], store.terminated[rows]
    told = dict(zip(rows, hypergradient.advantages(*columns, cost, c.gamma).tolist(), strict=True))
    total = sum(o.visit_discount**t for start, end in episodes for t in range(end - start)) * (1 - c.gamma)
    alpha = run.learners[0].model.log_ent_coef.exp().item()  # type: ignore[attr-defined]
    answer = torch.zeros(())
    for start, end in episodes:
        for k in range(start, end):
            e = sum(o.visit_discount ** (t - start) / total * c.gamma ** (k - t) * told[t] for t in range(start, k + 1))
            answer = answer + e / alpha * run.reward(store.obs[k : k + 1], store.act[k : k + 1]).sum()
    return slope(run, answer)


@pytest.mark.parametrize("visit_discount", [1.0, 0.99])
def test_the_answers_gradient_is_the_formula_and_no_longer_than_its_share(
    answered: Run, monkeypatch: pytest.MonkeyPatch, visit_discount: float
) -> None:
    monkeypatch.setattr(answered, "options", answered.options.model_copy(update={"visit_discount": visit_discount}))
    batch, output = answers(answered)
    plain, formula = slope(answered, cross_entropy(output, batch.label).mean()), written_out(answered)
    assert formula.norm() > 0
    for share in (1.0, 0.25, 1e-3):
        one = of(answered, "hypergradient", gradient_share=share, visit_discount=visit_discount)
        extra = slope(one, hypergradient.reward_loss(one, *answers(one))) - plain
        expected = formula * min(1, share * plain.norm() / formula.norm())
        assert torch.allclose(extra, expected, rtol=1e-2, atol=2e-3 * expected.abs().max().item() + 1e-7)
        assert extra.norm() <= share * plain.norm() * 1.001
        assert one.state.memory["ratio"] == pytest.approx((formula.norm() / plain.norm()).item(), rel=1e-3)


def test_without_cost_the_hypergradient_is_pebble_bit_for_bit() -> None:
    assert same_weights(trained("pebble", **SHORT), fresh("hypergradient", use_cost=False, **SHORT))


def test_a_cost_that_is_the_same_everywhere_leaves_pebbles_gradient(
    answered: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for level in (0.0, 5.0):
        monkeypatch.setattr(answered.state, "cost", lambda obs, act, level=level: torch.full(obs.shape[:-1], level))
        ours, plain = gradient(answered, hypergradient.reward_loss), gradient(answered, pebble.reward_loss)
        assert torch.allclose(ours, plain, atol=1e-6) and answered.state.memory["ratio"] < 1e-6
    monkeypatch.setattr(answered.state, "cost", lambda obs, act: torch.zeros(obs.shape[:-1]))
    assert torch.equal(gradient(answered, hypergradient.reward_loss), plain)


# MRN


def stepped(run: Run, critic: Any, rows: Tensor, target: Tensor) -> Any:
    """A copy of the critics after a step of gradient descent towards ``target`` on stored rows."""
    critic = copy.deepcopy(critic)
    optimizer = torch.optim.SGD(critic.parameters(), run.config.learning_rate)
    error = torch.cat(critic(run.store.obs[rows], run.store.act[rows]), 1) - target[:, None]
    optimizer.zero_grad()
    error.square().mean(0).sum().backward()
    optimizer.step()
    return critic


def test_critics_after_are_the_critics_after_one_plain_step(run: Run) -> None:
    learner, store = run.learners[0], run.store
    rows, reward = torch.arange(60, 76), torch.linspace(-1, 1, 16)
    model = learner.model  # type: ignore[attr-defined]
    before = [p.clone() for p in model.critic.parameters()]
    store.terminated[rows] = 1  # so that the target is the reward alone
    try:
        after = learner.critics_after(rows, reward)
    finally:
        store.terminated[rows] = 0
    at = store.obs[:9], store.act[:9]
    expected = torch.cat(stepped(run, model.critic, rows, reward)(*at), 1).T
    assert torch.allclose(after(*at), expected, atol=1e-6)
    assert not torch.allclose(torch.cat(model.critic(*at), 1).T, expected, atol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(before, model.critic.parameters(), strict=True))


def test_mrns_gradient_is_the_implicit_one(run: Run) -> None:
    """d outer / d r_n = lr (2 / N) <grad outer at theta', grad Q_n at theta>, from slopes taken one by one."""
    one, (batch, _) = of(run, "mrn"), answers(run, 12)
    rows, store, learner = torch.arange(60, 68), run.store, run.learners[0]
    state = learner.state_dict()["rng"].clone()
    got = slope(one, mrn.outer(one, batch, rows))
    critic = learner.model.critic  # type: ignore[attr-defined]
    learner._rng.set_state(state)  # type: ignore[attr-defined]
    reward = one.reward(store.obs[rows], store.act[rows])
    moved = learner.critics_after(rows, reward.detach())
    slopes = []
    for row in rows.tolist():  # of both critics, which share no weight
        total = torch.cat(critic(store.obs[row : row + 1], store.act[row : row + 1])).sum()
        slopes.append(flat(total, critic.parameters()))
    learner._rng.set_state(state)  # type: ignore[attr-defined]
    with torch.no_grad(), drawing_from(learner._rng):  # type: ignore[attr-defined]
        model = learner.model  # type: ignore[attr-defined]
        later = learner._soft_value(store.next_obs[rows], model.actor, model.critic_target)  # type: ignore[attr-defined]
        target = reward.detach() + run.config.gamma * (1 - store.terminated[rows]) * later
    moved_critic = stepped(run, critic, rows, target)
    first, second = (torch.cat(moved_critic(part.obs[:, 0], part.act[:, 0]), 1).T for part in batch[:2])
    assert torch.allclose(first, moved(batch.first.obs[:, 0], batch.first.act[:, 0]), atol=1e-6)
    loss = sum(cross_entropy(q, batch.label).mean() for q in first - second)
    outer = flat(loss, moved_critic.parameters())  # type: ignore[arg-type]
    by_reward = run.config.learning_rate * 2 / len(rows) * torch.stack([s @ outer for s in slopes])
    expected = slope(one, by_reward @ reward)
    assert torch.allclose(got, expected, rtol=1e-2, atol=1e-3 * expected.abs().max().item())


@pytest.mark.parametrize("name", ["parl", "mrn", "hypergradient"])
def test_what_looks_at_the_learner_waits_until_it_has_answered(run: Run, name: str) -> None:
    one = of(run, name)
    assert not torch.equal(gradient(one, METHODS[name].reward_loss), gradient(run, pebble.reward_loss))
    one.in_refresh = False
    assert torch.equal(gradient(one, METHODS[name].reward_loss), gradient(run, pebble.reward_loss))


# Controls


def test_random_acts_uniformly_and_never_learns() -> None:
    one = build("random", total_timesteps=300)
    before = [p.clone() for p in one.learners[0].model.policy.parameters()]  # type: ignore[attr-defined]
    list(train(one))
    model = one.learners[0].model  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in zip(before, model.policy.parameters(), strict=True))
    actions = one.store.act[:300, 0].sort().values
    assert (actions - torch.linspace(-1, 1, 300)).abs().max() < 0.2  # of a uniform law: over two at 1 in 1000
    first, second = (model.predict(np.zeros((5, 1)), deterministic=True)[0] for _ in range(2))
    assert first.shape == (5, 1) and not np.allclose(first, second)
    assert model.predict(np.zeros(1))[0].shape == (1,)


def test_unlabelled_is_pre_training_without_end() -> None:
    """Bit for bit what PEBBLE is whose teacher has no label to give."""
    one, other = (build(name, total_timesteps=80, train_freq=2, labels=0) for name in ("unlabelled", "pebble"))
    list(train(one)), list(train(other))
    weights = [list(each.learners[0].model.policy.parameters()) for each in (one, other)]  # type: ignore[attr-defined]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert not len(one.prefs)


# Options


def test_an_option_is_reached_by_its_full_name_and_a_wrong_one_is_told() -> None:
    told = {"total_timesteps": 9, "surf.threshold": 0.5, "rune.beta": 1.0, "options": {"weight": 2}}
    given = nest_options(told, "surf")
    assert given == {"total_timesteps": 9, "options": {"weight": 2, "threshold": 0.5}}
    with pytest.raises(ValueError, match=r"unknown setting 'surf.treshold'; did you mean 'surf.threshold'\?"):
        build("surf", options={"treshold": 0.5})
    with pytest.raises(ValueError, match=r"surf.threshold=2: .* less than or equal to 1"):
        build("surf", options={"threshold": 2})
    with pytest.raises(ValueError, match=r"unknown setting 'pebble.weight'; known are none"):
        build("pebble", options={"weight": 2})


def test_settings_go_defaults_preset_method_user_and_are_written_down(tmp_path: Path) -> None:
    settings = SMALL | {"newest_share": 0.25, "qpa.copies": 3, "pretrain_steps": 20}
    Agent("qpa", "Steer-v0", preset="quick", out=tmp_path / "run", **settings).learn(50)
    told = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["settings"]
    assert (told["policy_aligned"], told["newest_share"], told["action_repeat"]) == (True, 0.25, 4)
    assert told["options"] == {"copies": 3, "shortest": 0.7, "longest": 0.9}
    loaded = Agent.load(tmp_path / "run")
    assert loaded.config is not None and loaded.config.options == told["options"]
