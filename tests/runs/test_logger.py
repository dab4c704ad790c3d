"""Logs show each step once, whatever was written between a checkpoint and a fault."""

from pathlib import Path

import numpy as np

from rlhf_bilevel.data.run_folder import STEP
from rlhf_bilevel.evaluation.rollout import Evaluation
from rlhf_bilevel.runs.logger import Log
from tests.support.faults import events, logged


def written(log: Log, *steps: int) -> None:
    for step in steps:
        row = {"rollout/true_return": float(step), f"late/{step // 300}": 1.0}
        log.record(row, step)
        log.write(row)
        log.evaluation(Evaluation(np.array([step, 0.5]), None), step, 0, 0, True)


def test_a_log_that_goes_on_drops_what_came_after_its_step(tmp_path: Path) -> None:
    log = Log(tmp_path, False, 0, {})
    written(log, 100, 200)
    marks = log.marks()
    written(log, 250, 300, 400)
    log.marks()  # all of it is on the disk
    with (tmp_path / "progress.csv").open("a") as file:
        file.write("2")  # of a line that the fault cut short
    again = Log(tmp_path, False, 200, marks)
    written(again, 300, 400)
    again.close()

    whole = tmp_path / "whole"
    whole.mkdir()
    plain = Log(whole, False, 0, {})
    written(plain, 100, 200, 300, 400)
    plain.close()
    assert logged(tmp_path) == logged(whole) and len(logged(whole)) == 4
    assert (tmp_path / "evaluations.csv").read_bytes() == (whole / "evaluations.csv").read_bytes()
    for folder in (tmp_path, whole):
        assert events(folder, "rollout/true_return") == [(step, float(step)) for step in (100, 200, 300, 400)]


def test_files_of_a_run_that_begins_anew_are_removed(tmp_path: Path) -> None:
    log = Log(tmp_path, False, 0, {})
    written(log, 100)
    log.close()
    Log(tmp_path, False, 0, {}).close()
    assert not (tmp_path / "progress.csv").exists() and not (tmp_path / "evaluations.csv").exists()
    assert len(list(tmp_path.glob("events.*"))) <= 1


def test_rows_that_wait_for_an_evaluation_are_written_in_order_and_the_first_has_it(tmp_path: Path) -> None:
    def rows(late: bool, told: bool = True) -> list[dict[str, str]]:
        folder = tmp_path / f"{late}-{told}"
        folder.mkdir()
        log, found = Log(folder, False, 0, {}), {"eval/true_return": 7.0, "eval/success": 1.0}
        for step in (100, 150, 200, 250):
            row = {"train/loss": float(step)} | ({"rollout/true_return": 1.0} if step != 150 else {})
            if step == 150 and late:
                log.logger.hold()
            elif step == 150:
                row |= found
            log.record(row, step)
            log.write(row)
            if step == 200 and late and told:
                log.logger.release(found)
        log.record({"train/loss": 0.5}, 260)  # of a row that comes later
        log.close()
        return logged(folder)

    whole = rows(late=False)
    assert rows(late=True) == whole and [row[STEP] for row in whole] == ["100", "150", "200", "250"]
    assert [row.get("eval/true_return") for row in rows(late=True, told=False)] == [None] * 4  # the run has failed
