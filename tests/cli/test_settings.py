"""The list of settings, the examples of the help pages, and completion by a shell."""

import json
import shlex
import subprocess

import pytest

from rlhf_bilevel.__main__ import COMMANDS, main, parser
from rlhf_bilevel.cli.settings import settings, written
from rlhf_bilevel.config import Config
from rlhf_bilevel.config.presets import PRESETS
from rlhf_bilevel.config.reading import validate
from rlhf_bilevel.registries import METHODS


def test_each_setting_is_listed_once_with_a_text_and_its_values() -> None:
    rows = {row.name: row for row in settings()}
    assert set(rows) == set(Config.model_fields) - {"options"}
    for row in rows.values():
        assert row.text.endswith(".") and row.default and row.values, row.name
    assert rows["batch_size"].default == "256" and rows["batch_size"].presets["quick"] == "128"
    assert rows["tau"].values == "number, above 0, at most 1"
    assert rows["label_schedule"].values == "constant|decreasing"
    assert set(rows["net_arch"].presets) <= set(PRESETS)


@pytest.mark.parametrize("method", METHODS)
def test_a_methods_own_settings_come_first_with_a_text(method: str) -> None:
    rows = settings(method)
    own = [row for row in rows if "." in row.name]
    expected = {f"{METHODS[method].name}.{name}" for name in METHODS[method].options.model_fields}
    assert rows[: len(own)] == own and {row.name for row in own} == expected
    for row in own:
        assert row.text[-1:] == "." and row.values, row.name
    defaults = {row.name: row.default for row in rows}
    for name, value in METHODS[method].settings.items():
        assert defaults[name] == written(value)


def test_a_default_that_is_listed_can_be_set(capsys: pytest.CaptureFixture) -> None:
    main(["settings", "--json"])
    rows = json.loads(capsys.readouterr().out)
    plain = {row["name"]: row["default"] for row in rows if not row["default"].startswith("(")}
    assert len(plain) > 40
    assert validate({"total_timesteps": 1000, **plain}) == validate({"total_timesteps": 1000})


def test_settings_are_printed_for_people(capsys: pytest.CaptureFixture) -> None:
    main(["settings", "surf"])
    out = capsys.readouterr().out
    assert out.startswith("surf.threshold = 0.99    [number, above 0, at most 1]\n    tau: ")
    assert "\nnet_arch = 256,256; quick: 64,64;" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_two_examples_that_the_parser_takes(command: str, capsys: pytest.CaptureFixture) -> None:
    examples = COMMANDS[command].EXAMPLES
    assert len(examples) == 2
    for example in examples:
        words = shlex.split(example.partition("rlhf-bilevel ")[2].split(" > ")[0].removesuffix(')"'))
        assert words[0] == command
        assert parser().parse_args(words).command == command
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert all(example in capsys.readouterr().out for example in examples[:1])


@pytest.mark.parametrize("command", COMMANDS)
def test_each_option_says_what_it_is_for(command: str) -> None:
    (subparsers,) = (action for action in parser()._actions if action.dest == "==SUPPRESS==" and action.choices)
    for action in subparsers.choices[command]._actions:
        assert action.help, f"{command} {action.dest}"


def test_bash_completes_commands_options_and_methods(capsys: pytest.CaptureFixture) -> None:
    main(["completion", "bash"])
    script = capsys.readouterr().out
    probe = """
    COMP_WORDS=(rlhf-bilevel {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); COMP_LINE="${{COMP_WORDS[*]}}"
    _shtab_rlhf_bilevel; echo "${{COMPREPLY[@]}}"
    """

    def completed(words: str) -> list[str]:
        asked = ["bash", "--norc", "-c", script + probe.format(words=words)]
        return subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout.split()

    assert completed("comp") == ["compare", "completion"]
    assert completed("train peb") == ["pebble"]
    assert completed("train --thr") == ["--threads"]
