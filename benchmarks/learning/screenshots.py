"""Pictures of the label page for the documents: a run that is being taught, in Debian's Chromium.

Answers are those of ``behaviours``' script, by keys, as many as ``--labels`` says.

    python -m benchmarks.learning.screenshots --run runs/pictures
"""

import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from benchmarks.learning.behaviours import BEHAVIOURS, judged
from benchmarks.performance.labelling import FLAGS
from rlhf_bilevel.data.run_folder import RunFolder
from rlhf_bilevel.human.records import Assignment
from rlhf_bilevel.human.tables import CANT_TELL, LABEL, LEFT, RIGHT

FIGURES = Path(__file__).parents[2] / "docs/figures"
KEYS = {LEFT: "ArrowLeft", RIGHT: "ArrowRight", CANT_TELL: "ArrowDown"}
BEHAVIOUR = BEHAVIOURS["cartpole_spin"]


def answer(page: Page, folder: Path) -> None:
    page.wait_for_selector("body[data-answerable]", timeout=300_000)
    query, left, right = (page.evaluate(f"document.body.dataset.{name}") for name in ("query", "left", "right"))
    page.keyboard.press(KEYS[judged(folder, BEHAVIOUR, Assignment(query, left, right, LABEL))])
    page.wait_for_function("before => document.body.dataset.query !== before", arg=query)


def picture(page: Page, name: str) -> None:
    """At the middle of the clips."""
    page.wait_for_selector("body[data-state=pair]", timeout=300_000)
    page.wait_for_timeout(3000)  # until what training does has been asked for
    page.evaluate("""() => { const scrubber = document.getElementById("scrubber");
        scrubber.value = scrubber.max / 2; scrubber.dispatchEvent(new Event("input")); }""")
    page.screenshot(path=FIGURES / f"{name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", type=Path, required=True, help="the folder of a run that it makes")
    parser.add_argument("--labels", type=int, default=20, help="answered before; less than all that is asked by then")
    args = parser.parse_args()
    rlhf = [sys.executable, "-m", "rlhf_bilevel"]
    told = ["--env", BEHAVIOUR.env, "--preset", "quick", "--steps", str(BEHAVIOUR.steps)]
    told += ["--labels", str(BEHAVIOUR.labels), "--teacher", "human", "--max-pending-share", "0"]
    programs: list[subprocess.Popen[Any]] = [
        subprocess.Popen([*rlhf, "train", "pebble", *told, "--out", str(args.run)])
    ]
    try:
        while not RunFolder(args.run).begun and programs[0].poll() is None:
            time.sleep(0.2)
        serving = [*rlhf, "label", str(args.run), "--question", BEHAVIOUR.question]
        serving += ["--labeller", "ada", "--labeller", "grace", "--repeats", "0.2"]
        server = subprocess.Popen(serving, stdout=subprocess.PIPE, text=True)
        programs.append(server)
        assert server.stdout
        ada, grace = (server.stdout.readline().split()[1] for _ in range(2))
        with (
            sync_playwright() as playwright,
            playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS)) as browser,
        ):
            # Clips stand until told to play
            still: dict[str, Any] = {"reduced_motion": "reduce", "color_scheme": "light"}
            wide = browser.new_context(viewport={"width": 1280, "height": 800}, **still).new_page()
            wide.goto(ada)
            picture(wide, "label-waiting")
            for _ in range(args.labels):
                answer(wide, args.run)
            picture(wide, "label-pair")
            narrow: dict[str, Any] = {
                "viewport": {"width": 360, "height": 740},
                "device_scale_factor": 2,
                "color_scheme": "dark",
            }
            small = browser.new_context(**still | narrow).new_page()
            small.goto(grace)
            picture(small, "label-narrow")
            wide.goto(wide.url.rstrip("/") + "/quality")
            wide.screenshot(path=FIGURES / "label-quality.png")
    finally:
        for program in programs:
            program.terminate()
            program.wait()


if __name__ == "__main__":
    main()
