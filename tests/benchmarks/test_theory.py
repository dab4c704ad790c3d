"""The theory laboratory: samples are unbiased, judges exact, every method descends what it says, the rates come out."""

import csv
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.rows import read
from benchmarks.theory import figures, laboratory, tables
from benchmarks.theory.algorithm import Schedule, penalty, penalty_gradient
from benchmarks.theory.estimator import kl_errors, settle
from benchmarks.theory.general import General, logistic, quadratic, ridge, sine
from benchmarks.theory.laboratory import Job, Result
from benchmarks.theory.lqr import Regulator
from benchmarks.theory.mdp import RewardLearning
from benchmarks.theory.methods import METHODS
from benchmarks.theory.problem import Meter, Problem, slope
from benchmarks.theory.rivals.f2sa import f2sa
from benchmarks.theory.rivals.hypergradient import hpgd, sobirl, trace
from benchmarks.theory.rivals.implicit import aid, conjugate_gradients, parl
from benchmarks.theory.rivals.naive import naive
from benchmarks.theory.rivals.pbrl import _bellman_gap, value_penalty
from benchmarks.theory.rivals.zero_order import spread, zero_order
from rlhf_bilevel.bilevel import tabular
from rlhf_bilevel.bilevel.objectives import preference_loss
from rlhf_bilevel.bilevel.penalty import proxy, tilts
from rlhf_bilevel.bilevel.problems import Quadratic

ROOT = Path(__file__).parents[2]
MAKERS: list[Callable[[int, int], Problem]] = [RewardLearning, Regulator, quadratic, sine, ridge, logistic]
PLENTY = 10**14  # samples: noise of 1e-7


def place(problem: Problem, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Some x and y that are neither the start nor a solution, (R, p) and (R, q)."""
    rng = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(z.shape, generator=rng, dtype=torch.float64) for z in (problem.x, problem.y))
    return problem.x + 0.2 * x, problem.y + 0.2 * y


def moved(problem: Problem, steps: int = 5) -> Problem:
    """The same problem from a point where the response matters (at a reward of zero no pair is easier than another)."""
    for _ in range(steps):
        problem.x = problem.x - problem.eta * problem.gradient(problem.x)
    return problem


def first_step(method: Callable[[Meter, Schedule], object], problem: Problem, schedule: Schedule) -> Tensor:
    """What a method takes for grad F at the start, (R, p)."""
    iterates = iter(method(Meter(problem, np.random.default_rng(0)), schedule))  # type: ignore[call-overload]
    start, then = next(iterates), next(iterates)
    return (start - then) / problem.eta  # type: ignore[no-any-return]


# --- The judge


@pytest.mark.parametrize("make", MAKERS)
def test_judge_is_the_derivative_of_f_at_best_responses_which_are_stationary(
    make: Callable[[int, int], General],
) -> None:
    problem = make(0, 2)
    x, _ = place(problem)
    y = problem.respond(x).requires_grad_()
    assert slope(problem.lower(x, y), y).abs().max() < 1e-8

    def objective(x: Tensor) -> Tensor:
        return problem.upper(x, problem.respond(x))

    step = 1e-5
    shifts = step * torch.eye(x.shape[-1], dtype=torch.float64)
    expected = torch.stack([(objective(x + s) - objective(x - s)) / (2 * step) for s in shifts], -1)
    torch.testing.assert_close(problem.gradient(x), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(problem.gradient(problem.x).norm(dim=-1), torch.ones(2).double())


def test_mdps_are_the_librarys_mdps() -> None:
    problem = RewardLearning(0, 2)
    x, y = place(problem)
    states, actions = problem.states, problem.actions
    for i in range(2):
        mdp = tabular.MDP(
            problem.transition[i].reshape(states, actions, states), problem.initial[i],
            torch.full((states, actions), 1 / actions).double(), problem.gamma, problem.beta,
        )  # fmt: skip
        truth = tabular.table_reward(problem.truth[i].reshape(states, actions))
        features = problem.features[i].reshape(states, actions, -1)
        exact = tabular.RewardLearning(
            mdp, preference_loss(truth), lambda x, z=features: tabular.table_reward(torch.tanh(z @ x))
        )
        visits = tabular.visits(mdp, problem.log_policy(y)[i].exp().reshape(states, actions))
        torch.testing.assert_close(problem.lower(x, y)[i], exact.lower(x[i], visits))
        torch.testing.assert_close(problem.upper(x, y)[i], problem.scale[i] * exact.upper(x[i], visits))
        torch.testing.assert_close(problem.gradient(x)[i], problem.scale[i] * exact.gradient(x[i]))


# --- The samples


@pytest.mark.slow
@pytest.mark.parametrize("make", MAKERS)
def test_first_and_mixed_derivatives_of_batches_are_unbiased(make: Callable[[int, int], General]) -> None:
    problem, rng = make(0, 2), np.random.default_rng(0)
    x, y = (z.requires_grad_() for z in place(problem))

    def derivatives(of: Problem | object) -> Tensor:
        lower, upper = of.lower(x, y), of.upper(x, y)  # type: ignore[union-attr]
        by_y = slope(lower, y, create_graph=True)
        parts = [slope(lower, x, True), by_y, slope(upper, x, True), slope(upper, y, True), slope(by_y[:, 0], x, True)]
        return torch.cat(parts, -1).detach()

    drawn = torch.stack([derivatives(problem.batch(x.detach(), y.detach(), 2000, rng)) for _ in range(400)])
    error = (drawn.mean(0) - derivatives(problem)).abs()
    cut_off = 2e-3 * derivatives(problem).abs().max() if isinstance(problem, Regulator) else 1e-9  # its horizon
    assert (error < 5 * drawn.std(0) / 20 + cut_off).all()


@pytest.mark.slow
def test_second_derivatives_of_trajectories_are_unbiased() -> None:
    problem, rng = RewardLearning(0, 2), np.random.default_rng(0)
    x, y = place(problem)
    y = (5 * y).requires_grad_()  # far from the reference policy, so that what the third link tells matters

    def hessian(lower: Tensor) -> Tensor:
        gradient = slope(lower, y, create_graph=True)
        return torch.stack([slope(column, y, True).detach() for column in gradient.unbind(-1)], -1)

    exact = hessian(problem.lower(x, y))
    drawn = torch.stack([hessian(problem.batch(x, y.detach(), 2000, rng, True).lower(x, y)) for _ in range(400)])
    assert ((drawn.mean(0) - exact).abs() < 5 * drawn.std(0) / 20 + 1e-9).all()
    without = hessian(problem.batch(x, y.detach(), PLENTY, rng).lower(x, y))
    assert (without - exact).abs().max() > 0.01  # two links do not tell it: that is what the third is for


def test_counts_are_those_of_trajectories_that_walk() -> None:
    problem, rng, count = RewardLearning(0, 1), np.random.default_rng(0), 40_000
    _, y = place(problem)
    policy = problem.log_policy(y)[0].exp().reshape(problem.states, problem.actions).numpy()

    def act(state: np.ndarray) -> np.ndarray:
        return state * problem.actions + (rng.random((len(state), 1)) > policy[state].cumsum(1)).sum(1)

    def walk(pair: np.ndarray) -> np.ndarray:
        pair, going = pair.copy(), np.flatnonzero(rng.random(count) < problem.gamma)
        while len(going):
            law = problem.transition[0].numpy()[pair[going]].cumsum(1)
            pair[going] = act((rng.random((len(going), 1)) > law).sum(1))
            going = going[rng.random(len(going)) < problem.gamma]
        return pair

    now = walk(act(rng.choice(problem.states, count, p=problem.initial[0].numpy())))
    later = walk(now)
    counts = np.zeros((6, 6))
    np.add.at(counts, (now, later), 1)
    law = problem.law(y)
    expected = (law.pair[0][:, None] * law.later[0]).numpy()
    assert (np.abs(counts / count - expected) < 5 * np.sqrt(expected / count)).all()
    batch = problem.batch(problem.x, y, count, rng)
    assert batch.links().sum() == count
    assert (np.abs(batch.links()[0].numpy() / count - expected) < 5 * np.sqrt(expected / count)).all()


def test_kl_gradients_error_is_within_one_bound_for_all_policies() -> None:
    errors = [row for row in kl_errors(policies=50, repeats=16, seed=1) if row.samples <= 10**6]
    assert len(errors) == 200
    assert 0 < max(row.squared_error for row in errors) < 1


# --- The methods, where noise is too small to matter


@pytest.mark.parametrize("two_sided", [False, True])
def test_algorithm_1_descends_phi_sigma(two_sided: bool) -> None:
    problem = moved(RewardLearning(0, 2))
    sides, x = tilts(0.1, two_sided), problem.x.clone().requires_grad_()
    responses = [settle(problem, problem.x, tilt) for tilt in sides]
    exact = penalty_gradient(problem.x, [(problem, y) for y in responses], sides)
    torch.testing.assert_close(
        exact,
        slope(proxy(partial(problem.lower, x), partial(problem.upper, x), (responses[0], responses[1]), sides), x),
    )
    step = first_step(partial(penalty, two_sided=two_sided), problem, Schedule(2, 300, PLENTY, PLENTY, 0.1))
    torch.testing.assert_close(step, exact, rtol=1e-4, atol=1e-4)
    assert (exact - problem.gradient(problem.x)).norm() > 1e-5  # and that has a bias


@pytest.mark.parametrize("two_sided", [False, True])
def test_algorithm_1_takes_the_quadratics_closed_form(two_sided: bool) -> None:
    problem = quadratic(0, 2)
    rng = torch.Generator().manual_seed(0)
    A, b = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in ((5, 3), (5,)))
    known, places = Quadratic(A, b, 0.3), zip(problem.x, problem.scale, strict=True)
    # f is scaled, so that its tilt is too
    exact = torch.stack([s * known.proxy_gradient(x, float(0.2 * s), two_sided) for x, s in places])
    rho = (problem.scale[:, None] * 0.3) * problem.x
    step = first_step(partial(penalty, two_sided=two_sided), problem, Schedule(2, 60, PLENTY, PLENTY, 0.2))
    torch.testing.assert_close(step - rho, exact - rho, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", [parl, aid, hpgd, sobirl, trace])
def test_hypergradients_are_the_gradient(method: Callable[[Meter, Schedule], object]) -> None:
    problem = moved(RewardLearning(0, 2))
    step = first_step(method, problem, Schedule(2, 300, PLENTY, PLENTY))
    torch.testing.assert_close(step, problem.gradient(problem.x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [ridge, logistic, sine])
def test_implicit_differentiation_knows_no_mdp(make: Callable[[int, int], Problem]) -> None:
    problem = make(0, 2)
    for method in parl, aid:
        step = first_step(method, problem, Schedule(2, 200, PLENTY, PLENTY))
        torch.testing.assert_close(step, problem.gradient(problem.x), rtol=1e-3, atol=1e-3)


def test_naive_alternation_misses_the_response() -> None:
    problem = moved(RewardLearning(0, 2))
    x = problem.x.clone().requires_grad_()
    partial_gradient = slope(problem.upper(x, problem.respond(problem.x)), x)
    step = first_step(naive, problem, Schedule(2, 100, PLENTY, PLENTY))
    torch.testing.assert_close(step, partial_gradient, rtol=1e-4, atol=1e-4)
    assert (step - problem.gradient(problem.x)).norm() > 0.1 * problem.gradient(problem.x).norm()


@pytest.mark.slow
def test_f2sa_starts_on_the_one_sided_penalty() -> None:
    problem = moved(RewardLearning(0, 2))
    schedule = Schedule(2, 300, PLENTY, PLENTY, 0.1)
    torch.testing.assert_close(
        first_step(f2sa, problem, schedule), first_step(penalty, problem, schedule), rtol=1e-3, atol=1e-3
    )


@pytest.mark.slow
def test_zero_order_is_the_slope_along_a_random_direction() -> None:
    problem = moved(RewardLearning(0, 2))
    schedule = Schedule(2, 200, PLENTY, PLENTY, 1e-2)
    u = torch.from_numpy(_direction(problem, schedule))
    expected = (problem.gradient(problem.x) * u).sum(-1, keepdim=True) * u / spread(problem)
    torch.testing.assert_close(first_step(zero_order, problem, schedule), expected, rtol=1e-2, atol=1e-3)


def _direction(problem: Problem, schedule: Schedule) -> np.ndarray:
    """The u that ``zero_order`` draws, which is the only normal one."""
    drawn: list[np.ndarray] = []

    class Spy(np.random.Generator):
        def standard_normal(self, shape: tuple[int, ...]) -> np.ndarray:  # type: ignore[override]
            drawn.append(super().standard_normal(shape))
            return drawn[-1]

    iterates = zero_order(Meter(problem, Spy(np.random.PCG64(0))), schedule)
    next(iterates), next(iterates)
    return drawn[0]


@pytest.mark.slow
def test_joint_descent_ends_on_phi_sigma_too() -> None:
    problem, sigma = quadratic(0, 2), 0.3
    *_, x = value_penalty(Meter(problem, np.random.default_rng(0)), Schedule(7000, 1, PLENTY, PLENTY, sigma))
    sides = (0.0, -sigma)
    left = penalty_gradient(x, [(problem, settle(problem, x.detach(), tilt)) for tilt in sides], sides)
    assert left.abs().max() < 1e-3


def test_bellman_penalty_is_the_loss_of_acting_once_otherwise() -> None:
    problem = RewardLearning(0, 2)
    x, y = (z.requires_grad_() for z in place(problem))
    best = problem.respond(x.detach())

    def exact(x: Tensor, y: Tensor) -> Tensor:
        q = problem.beta * problem.improve(x, problem.respond(x.detach()))  # Q* and, by Newton's method, its derivative
        values = problem.beta * torch.logsumexp(q.unflatten(-1, (3, 2)) / problem.beta - np.log(2), -1)
        log_policy = problem.log_policy(y)
        own = (log_policy.exp() * (q - problem.beta * (log_policy + np.log(2)))).unflatten(-1, (3, 2)).sum(-1)
        return (values - own).mean(-1)

    sampled = _bellman_gap(Meter(problem, np.random.default_rng(0)), problem, x, best, y, PLENTY)
    torch.testing.assert_close(sampled(x, y), exact(x, y), rtol=1e-4, atol=1e-4)
    for at in x, y:
        torch.testing.assert_close(slope(sampled(x, y), at), slope(exact(x, y), at), rtol=1e-4, atol=1e-4)
    assert (exact(x, y) > 0).all()
    assert exact(x, best).abs().max() < 1e-9


def test_conjugate_gradients_solve_in_as_many_steps_as_dimensions() -> None:
    rng = torch.Generator().manual_seed(0)
    root, right = (torch.randn(2, 4, k, generator=rng, dtype=torch.float64) for k in (4, 1))
    matrix = -root @ root.mT
    solved = conjugate_gradients(lambda v: (matrix @ v[..., None])[..., 0], right[..., 0], 4)
    torch.testing.assert_close((-matrix @ solved[..., None]), right, rtol=1e-6, atol=1e-6)


# --- The laboratory


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_its_samples_are_counted(method: str) -> None:
    job = Job("MDP", method, 0.5, seed=5, replicates=2)
    rows, schedule = laboratory.run(job), laboratory.plan(job)
    assert [row.seed for row in rows] == [5, 6]
    assert all(0 < row.reached < 2 for row in rows)
    assert rows[0].samples >= schedule.T * (METHODS[method].loops * schedule.K * schedule.n + schedule.B)
    assert (rows[0].products > 0) == (method in laboratory.SECOND_ORDER)
    again = laboratory.run(job)
    assert [row._replace(seconds=0) for row in again] == [row._replace(seconds=0) for row in rows]


def test_a_long_run_is_judged_without_bias_and_exactly_where_it_falls_fast() -> None:
    assert laboratory.judged(7, np.random.default_rng(0)) == dict.fromkeys(range(7), 1.0)
    steps, times = 3 * laboratory.JUDGED, 400
    falling, slow = 0.9 ** np.arange(steps), np.sin(np.arange(steps) / 97.0) + 2
    sums = []
    for seed in range(times):
        weight = laboratory.judged(steps, np.random.default_rng(seed))
        at, w = np.array(list(weight)), np.array(list(weight.values()))
        assert len(at) == laboratory.JUDGED and w.sum() == pytest.approx(steps)
        assert (falling[at] * w).sum() == pytest.approx(falling.sum(), rel=1e-6)
        sums.append((slow[at] * w).sum())
    assert np.mean(sums) == pytest.approx(slow.sum(), abs=6 * np.std(sums) / math.sqrt(times) + 1e-9)


@pytest.mark.slow
def test_rates_come_out_on_the_quadratic() -> None:
    wanted = "penalty", "central difference", "naive alternation"
    rows = [row for m in wanted for eps in (0.1, 0.03, 0.01) for row in laboratory.run(Job("quadratic", m, eps, 0, 4))]
    one_sided, two_sided, plain = sorted(tables.lines(rows), key=lambda line: wanted.index(line.method))
    assert one_sided.found_slope == pytest.approx(3, abs=0.3)
    assert two_sided.found_slope == pytest.approx(2.5, abs=0.3)
    assert one_sided.best_reached < 0.015 and two_sided.best_reached < 0.015
    assert plain.best_reached > 0.03  # it does not go to zero, however many samples


def test_central_difference_is_no_worse_at_equal_samples() -> None:
    reached, samples = [], []
    for name in ("penalty", "central difference, as penalty"):
        rows = laboratory.run(Job("quadratic", name, 0.03, 0, 8))
        reached.append(np.median([row.reached for row in rows]))
        samples.append(rows[0].samples)
    assert samples[0] == samples[1]
    assert reached[1] <= reached[0]


def test_tables_recover_known_slopes() -> None:
    def row(eps: float, seed: int, reached: float, order: float) -> Result:
        return Result("MDP", "penalty", eps, seed, round(1e6 * eps**-order), reached, 0.0, 7, 2.0)

    rows = [row(eps, seed, 2 * eps, 3.0) for eps in (0.1, 0.03, 0.01, 0.003) for seed in range(3)]
    (line,) = tables.lines(rows)
    assert line.planned_slope == pytest.approx(3) and line.found_slope == pytest.approx(3)
    assert line.samples_to_1e2 == pytest.approx(1e6 * 0.005**-3, rel=1e-3)
    assert line.samples_to_1e3 is None and line.hessian_products == 7
    (flat,) = tables.lines([row(eps, 0, 0.2, 3.0) for eps in (0.1, 0.03, 0.01)])
    assert flat.found_slope == math.inf
    assert flat.samples_to_1e1 is flat.samples_to_1e2 is flat.samples_to_1e3 is None


def test_tables_and_laboratory_say_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for main, arguments in (
        (tables.main, ["1", "--results", str(tmp_path / "none.csv")]),
        (tables.main, ["3"]),
        (laboratory.main, ["--problems", "MPD"]),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert capsys.readouterr().err.strip()


def test_published_rates_are_of_methods_here_or_say_that_it_was_not_run() -> None:
    with (ROOT / "benchmarks/theory/published.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["table"] for row in rows} == {"1", "2"}
    assert {row["method"] for row in rows} - {"not run"} <= set(METHODS)
    shown = "".join(tables.markdown(table, [], []) for table in (1, 2))
    assert "Theorem 1" in shown and "Theorem 2" in shown


@pytest.mark.slow
def test_committed_tables_and_figures_are_those_of_the_committed_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    for table in "1", "2":
        tables.main([table, "--out", str(tmp_path)])
        for file in f"table{table}.md", f"table{table}.csv":
            assert (tmp_path / file).read_text() == (ROOT / "docs/tables" / file).read_text()
    figures.main(["--out", str(tmp_path)])
    for name in "bias", "estimator", "samples", "coupling":
        for suffix in "svg", "png":
            file = f"theory-{name}.{suffix}"
            assert 0 < (ROOT / "docs/figures" / file).stat().st_size < 300_000
            assert (tmp_path / file).stat().st_size > 5_000


@pytest.mark.slow
def test_laboratory_writes_what_tables_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.csv"
    laboratory.main(["--problems", "nonconcave sine", "--finest", "0.3", "--out", str(out)])
    rows = read(out, Result)
    offered = set(METHODS) - set(laboratory.PROBLEMS["nonconcave sine"].without)
    assert {(row.method, row.eps) for row in rows} == {(method, 0.3) for method in offered}
    assert len(rows) == 8 * len(offered)
    assert f"{len(offered)} of {len(offered)}" in capsys.readouterr().out
    again = ["--problems", "nonconcave sine", "--methods", "naive alternation", "--finest", "0.3", "--seed", "1"]
    laboratory.main([*again, "--out", str(out)])
    renewed = read(out, Result)
    assert "1 of 1" in capsys.readouterr().out and len(renewed) == len(rows)
    other = [[row for row in found if row.method != "naive alternation"] for found in (rows, renewed)]
    assert other[0] == other[1] and rows != renewed
