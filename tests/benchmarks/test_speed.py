"""What the benchmarks count is what is computed, and they speak; nothing here asserts on time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.performance import ours
from benchmarks.performance.compare import INTERPRETERS, TASKS, Subject, reward_flops, sac_flops
from benchmarks.performance.growth import LAWS, Law, exponent
from rlhf_bilevel.data.replay_buffer import RelabelledView, ReplayBuffer


def test_an_update_computes_no_product_that_nobody_uses() -> None:
    run = ours.run_of("sac", 300)
    run.improve(1, 1)
    with FlopCounterMode(display=False) as counted:
        run.improve(1, 1)
    assert counted.get_total_flops() == sac_flops()
    plain = ours.run_of("sac", 300, algorithm=ours.Plain)
    with FlopCounterMode(display=False) as theirs:
        plain.improve(1, 1)
    assert theirs.get_total_flops() > 1.1 * sac_flops()  # SB3's update, with the gradients that it throws away


def test_the_rewards_arithmetic_is_as_it_is_counted() -> None:
    run = ours.run_of("pebble", 300)
    with FlopCounterMode(display=False) as counted:
        run.store.learned(run.reward)(torch.arange(300))
    assert counted.get_total_flops() == 300 * reward_flops(training=False)
    units, work = ours.reward_update((256, 256, 256))
    with FlopCounterMode(display=False) as counted:
        work()
    assert counted.get_total_flops() == units * reward_flops()


@pytest.mark.slow
def test_a_subject_works_once_a_line() -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "benchmarks.performance.ours", "reward_update_small"],
        input="\n\n",
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
    )
    versions, *turns = map(json.loads, answer.stdout.splitlines())
    assert "torch" in versions and len(turns) == 2
    assert all(turn["seconds"] > 0 and turn["units"] == 2 * ours.PAIRS and turn["peak_mib"] > 1 for turn in turns)


def test_every_subject_has_a_script_and_an_interpreter() -> None:
    for _, _, subjects in TASKS.values():
        assert {script for script, _ in subjects.values()} <= INTERPRETERS.keys()


def test_a_million_rows_of_meta_world_fit_into_a_gibibyte() -> None:
    store = ReplayBuffer(39, 4, 1_000_000)
    views = [RelabelledView(store, seed) for seed in (0, 1)]
    held = [store.table, *(tensor for view in views for tensor in (view._reward, view._cached))]
    assert sum(tensor.nbytes for tensor in held) < 2**30 / 2
    assert store.obs.data_ptr() == store.table.data_ptr()  # columns are views of it


def test_an_exponent_is_the_slope_in_logarithms() -> None:
    assert exponent((10, 100, 1000), (5.0, 50.0, 500.0)) == pytest.approx(1)
    assert exponent((10, 100, 1000), (2.0, 2.0, 2.0)) == pytest.approx(0)


@pytest.mark.slow
def test_the_gpu_script_says_so_where_there_is_none() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU: run benchmarks.performance.gpu itself")
    call = subprocess.run([sys.executable, "-m", "benchmarks.performance.gpu"], capture_output=True, text=True)
    assert call.returncode == 2 and call.stderr == "benchmarks.performance.gpu: torch sees no GPU\n"


def test_a_peers_script_finds_its_imports_in_an_environment_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(INTERPRETERS, "sb3", Path(sys.executable))
    with pytest.raises(RuntimeError, match=r"sb3\.py unheard-of ended early: KeyError: 'unheard-of'"):
        Subject("sb3", "unheard-of", 1)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.what)
def test_what_grows_does_its_work_at_its_smallest_size(law: Law) -> None:
    units, work = law.make(law.sizes[0])
    work()
    assert units > 0
