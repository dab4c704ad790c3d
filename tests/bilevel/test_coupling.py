"""The coupling experiment's worlds, batched solver, gradients and tables."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.rows import read, write
from benchmarks.theory import coupling
from benchmarks.theory.coupling import METHODS, Pairs, Row, Setting, Task, Worlds
from rlhf_bilevel.bilevel import objectives
from rlhf_bilevel.bilevel.tabular import RewardLearning, random_mdp, table_reward, visits

SHAPE = coupling.STATES, coupling.ACTIONS


@pytest.fixture(scope="module")
def worlds() -> Worlds:
    return coupling.draw(0, range(2), 0.7)


def first_fit(worlds: Worlds) -> Tensor:
    return coupling.learn(worlds, Setting(), METHODS["uniform"], [], 0)[0]


def one_by_one(worlds: Worlds, name: str) -> list[RewardLearning]:
    """The same problems as ``tabular`` poses them, a world each."""
    problems = []
    for number, (features, truth) in enumerate(zip(worlds.features, worlds.truth, strict=True)):
        drawn = random_mdp(coupling.generator(0, number, 0), *SHAPE, coupling.GAMMA, coupling.BETA)
        mdp = replace(drawn, reference=torch.full(SHAPE, 1 / 3, dtype=torch.float64))
        teacher, reference = table_reward(truth.reshape(SHAPE)), visits(mdp, mdp.reference)
        judged, weight = objectives.preference_loss(teacher), METHODS[name].weight
        if weight is not None:
            judged = objectives.win_rate(teacher, reference, reference, weight)
        problems.append(RewardLearning(mdp, judged, lambda x, f=features: table_reward((f @ x).reshape(SHAPE))))
    return problems


@pytest.mark.parametrize("misfit", [0, 0.3, 0.9])
def test_misfit_is_the_share_of_variance_outside_the_class(misfit: float) -> None:
    worlds = coupling.draw(1, range(3), misfit)
    for features, truth in zip(worlds.features, worlds.truth, strict=True):
        design = torch.cat([features, torch.ones(coupling.PAIRS, 1, dtype=torch.float64)], 1)
        residual = truth - design @ torch.linalg.lstsq(design, truth[:, None]).solution[:, 0]
        assert (residual.var() / truth.var()).item() == pytest.approx(misfit, abs=1e-12)
        assert truth.std(correction=0).item() == pytest.approx(coupling.REWARD_STD)


def test_return_share_runs_from_the_reference_to_the_optimum(worlds: Worlds) -> None:
    rng = torch.Generator().manual_seed(0)
    assert worlds.return_share(worlds.uniform()).abs().max() < 1e-12
    assert (worlds.return_share(worlds.optimum()) - 1).abs().max() < 1e-12
    assert (worlds.return_share(worlds.best(100 * worlds.truth)) - 1).abs().max() < 1e-3  # beta a hundredth
    for _ in range(20):
        policy = torch.softmax(torch.randn(worlds.transition.shape[:3], generator=rng, dtype=torch.float64), -1)
        assert (worlds.return_share(policy) < 1).all()


@pytest.mark.parametrize("name", ["preference_loss", "win_rate 4"])
def test_penalty_and_closed_form_agree(worlds: Worlds, name: str) -> None:
    """In G, in the gradient (1/16 is small enough a tilt), and in the return to which descending it leads."""
    batch, phi, problems = coupling.exact(worlds, Setting(), METHODS[name]), first_fit(worlds), one_by_one(worlds, name)

    def closed_form(phi: Tensor) -> Tensor:
        return torch.stack([p.gradient(x) + coupling.RIDGE * x for p, x in zip(problems, phi, strict=True)])

    def penalty(phi: Tensor) -> Tensor:
        return coupling.gradient(batch, METHODS[name], phi)

    own = batch.objective(batch.rewards(phi), (1 - coupling.GAMMA) * batch.respond(phi, 0.0))
    exact = torch.stack([p.upper(x, p.respond(x, 0.0)) for p, x in zip(problems, phi, strict=True)])
    torch.testing.assert_close(own, exact, rtol=1e-9, atol=0)
    slope = closed_form(phi)
    assert ((penalty(phi) - slope).norm(dim=1) < 1e-3 * slope.norm(dim=1)).all()
    ends = [coupling.descend(gradient, phi, 30) for gradient in (penalty, closed_form)]
    returns = [worlds.return_share(worlds.best(batch.rewards(end))) for end in ends]
    assert (returns[0] - returns[1]).abs().max() < 0.01
    assert (returns[0] - worlds.return_share(worlds.best(batch.rewards(phi)))).abs().max() > 0.02


def test_the_coupling_lowers_phi_where_naive_alternation_does_not() -> None:
    worlds = coupling.draw(0, range(4), 0.7)
    for name in ("preference_loss", "win_rate 4"):
        batch, ends = coupling.exact(worlds, Setting(), METHODS[name]), {}
        for method in (name, "naive"):
            _, phi = coupling.learn(worlds, Setting(), METHODS[method], [], 40)
            ends[method] = batch.objective(batch.rewards(phi), (1 - coupling.GAMMA) * batch.respond(phi, 0.0))
        assert (ends[name] < ends["naive"] - 1e-3).all()


def test_uniform_stays_at_its_fit(worlds: Worlds) -> None:
    first, last = coupling.learn(worlds, Setting(), METHODS["uniform"], [], 50)
    torch.testing.assert_close(first, last, rtol=0, atol=1e-2)


def test_a_table_is_not_held_back_by_the_class() -> None:
    shares = {name: coupling.solve(Task(0, range(4), Setting(), name, 20)) for name in ("naive", "table")}
    assert all(table[0] > 0.9 > naive[0] for naive, table in zip(*shares.values(), strict=True))


def test_tabular_bradley_terry_recovers_a_utility(worlds: Worlds) -> None:
    share = torch.full((2, coupling.PAIRS), 1 / coupling.PAIRS, dtype=torch.float64)
    teacher, table = coupling.answers(worlds, 0.0), torch.eye(coupling.PAIRS, dtype=torch.float64).expand(2, -1, -1)
    expected = coupling.bradley_terry(table, coupling.asked_of(teacher, share), 1e-9)
    centred = worlds.truth - worlds.truth.mean(1, keepdim=True)
    torch.testing.assert_close(expected, centred, rtol=0, atol=1e-4)
    rngs = [torch.Generator().manual_seed(seed) for seed in range(2)]
    counts = coupling.sample(teacher, share, 200_000, rngs)
    assert (counts.asked.sum((1, 2)) == 200_000).all() and (counts.won <= counts.asked).all()
    fitted = coupling.bradley_terry(table, counts.share(), 1 / 200_000)
    assert (fitted - centred).square().mean().sqrt() < 0.1


def test_mistakes_flip_labels(worlds: Worlds) -> None:
    right, wrong = coupling.answers(worlds, 0.0), coupling.answers(worlds, 0.2)
    torch.testing.assert_close(wrong, 0.8 * right + 0.2 * (1 - right))
    share = torch.full((2, coupling.PAIRS), 1 / coupling.PAIRS, dtype=torch.float64)
    counts: Pairs = coupling.sample(wrong, share, 100_000, [torch.Generator().manual_seed(s) for s in range(2)])
    agreed = torch.where(right > 0.5, counts.won, counts.asked - counts.won).sum((1, 2)) / 100_000
    expected = torch.maximum(wrong, 1 - wrong).mean((1, 2))  # on average over pairs
    torch.testing.assert_close(agreed, expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("name", ["naive", "preference_loss", "win_rate 4"])
def test_seeds_reproduce_and_worlds_do_not_depend_on_their_chunk(name: str) -> None:
    setting = Setting(labels=50)
    both = coupling.solve(Task(3, range(2), setting, name, 12))
    assert both == coupling.solve(Task(3, range(2), setting, name, 12))
    assert coupling.solve(Task(3, [1], setting, name, 12))[0] == pytest.approx(both[1], rel=1e-6)
    assert both != coupling.solve(Task(4, range(2), setting, name, 12))


def rows(mdps: int = 5) -> list[Row]:
    """Every method's share is .1 x its number + .01 x the world's, at every level."""
    levels = {**coupling.SWEEPS, "objective": (0.0,)}
    return [
        Row(sweep, float(level), method, mdp, 0.1 * number + 0.01 * mdp, 0.5, 0.25)
        for sweep in levels
        for level in levels[sweep]
        for number, method in enumerate(METHODS)
        for mdp in range(mdps)
    ]


def test_summary_pairs_worlds_and_survives_the_file(tmp_path: Path) -> None:
    write(rows(), tmp_path / "rows.csv")
    assert read(tmp_path / "rows.csv", Row) == [Row(*row[:4], round(row[4], 6), *row[5:]) for row in rows()]
    for outcome in coupling.summary(rows()):
        gain = 0.1 * list(METHODS).index(outcome.method) - 0.1
        assert outcome.gain == pytest.approx((gain, gain, gain))  # the worlds' spread cancels in pairs
        mean, low, high = outcome.share
        assert mean == pytest.approx(0.12 + gain) and low < mean < high


def test_panel_draws_every_method_on_four_axes() -> None:
    axes = Figure().subplots(1, 4)
    coupling.panel(list(axes), rows())
    assert [len(axis.lines) for axis in axes[:3]] == [len(METHODS)] * 3
    assert [label.get_text() for label in axes[1].get_xticklabels()] == ["50", "200", "800", "∞"]
    assert [label.get_text() for label in axes[3].get_xticklabels()] == list(METHODS)


@pytest.mark.parametrize("wrong", [["--mdps", "0"], ["--seed", "-1"], ["--workers", "0"], ["--out", "no/such/x.csv"]])
def test_wrong_input_is_one_line_and_exit_code_2(
    wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        coupling.main(["--out", str(tmp_path / "x.csv"), *wrong])
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and told.startswith("coupling: ") and told.count("\n") == 1
