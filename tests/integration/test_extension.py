"""One of each kind is added from outside the package: by the code that CONTRIBUTING.md shows."""

import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import TD3

from rlhf_bilevel import Agent, registries
from rlhf_bilevel.__main__ import parser
from rlhf_bilevel.cli import run_options
from rlhf_bilevel.config import Config
from rlhf_bilevel.data.preference_dataset import Dataset
from rlhf_bilevel.data.run_folder import config_bytes
from rlhf_bilevel.envs import registration
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.feedback.teachers import SimulatedTeacher
from rlhf_bilevel.registries import LEARNERS, METHODS, QUERY_RULES, REWARD_FORMS, SUITES, TEACHERS
from rlhf_bilevel.runs.spec import check_owners
from rlhf_bilevel.types import Preferences, Queries
from rlhf_bilevel.utils.json_yaml import read_yaml
from rlhf_bilevel.utils.registry import Registry, _entry_points
from tests.cli.test_cli import fails
from tests.integration.test_docs import blocks

ROOT = Path(__file__).parents[2]
PAGE = "CONTRIBUTING.md"
FILES = {block.split("\n", 1)[0].removeprefix("# "): block for block in blocks("python", PAGE)}
KINDS = (METHODS, TEACHERS, QUERY_RULES, REWARD_FORMS, LEARNERS, SUITES)
(GROUPS,) = (tomllib.loads(block)["project"]["entry-points"] for block in blocks("toml", PAGE))
LINES = (ROOT / PAGE).read_text().replace("\\\n", " ").splitlines()
PLACED, NAMED = (shlex.split(line) for line in LINES if line.startswith("rlhf-bilevel train"))
TINY: list[str] = shlex.split(
    "--steps 120 --labels 12 --set segment_length=10 --set net_arch=8 --set eval_freq=120 --set n_eval_episodes=1 "
    "--set learning_starts=20 --set pretrain_steps=30 --set num_interact=30 --set ensemble_size=2"
)


def words(line: list[str], out: Path) -> list[str]:
    """The arguments of a command that the page shows, with a small run in the folder ``out``."""
    return [*line[1 : line.index("--steps")], *TINY, "--out", str(out)]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as pip leaves it: the modules, and the metadata of a package."""
    folder = tmp_path_factory.mktemp("site")
    for name, text in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    info = folder / "my_things-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-things\nVersion: 1.0\n")
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()) for group, points in GROUPS.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    return folder


def run(folder: Path, program: str, *arguments: str, installed: bool = False) -> str:
    """What a new process printed that stands in ``folder``, which is a package that is ``installed`` or just there."""
    paths = [str(ROOT), *([str(folder)] if installed else [])]
    place = folder.parent if installed else folder
    own = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], env=os.environ | own, cwd=place, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_as_it_was_asked_for(out: Path, *names: str) -> None:
    told = read_yaml(out / "config.yaml")
    settings = told["settings"]
    assert (told["method"], told["env"], told["algorithm"]) == names[:3]
    assert (settings["teacher_object"], settings["query"], settings["reward_form"]) == names[3:]
    asked = Dataset.read(out / "preferences.parquet")
    answers = asked.preferences(asked.labelled)
    first, second = (segments.act.square().sum((1, 2)) for segments in answers[:2])
    assert len(answers.label) == 12 and torch.equal(answers.label, (first < second).float())


def test_the_page_shows_one_of_each_kind_in_ten_lines() -> None:
    assert set(GROUPS) == {kind.group for kind in KINDS}
    places = {place for points in GROUPS.values() for place in points.values()}
    assert {place.partition(":")[0].replace(".", "/") + ".py" for place in places} == set(FILES)
    for text in FILES.values():
        assert len([line for line in text.splitlines() if line and not line.startswith("#")]) <= 10


def test_a_package_adds_one_of_each_and_runs_with_them_need_no_trust(package: Path, tmp_path: Path) -> None:
    """Help pages tell the names, and import neither torch nor the package."""
    out = tmp_path / "run"
    program = """
import contextlib, io, sys
from rlhf_bilevel.__main__ import main
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()) as told:
    main(["train", "--help"])
assert "tempered" in told.getvalue() and "patient" in told.getvalue()
for wrong in (["train", "temperd"], ["train", "tempered", "--env", "x", "--algorithm", "patientt"]):
    with contextlib.suppress(SystemExit), contextlib.redirect_stderr(io.StringIO()) as told:
        main(wrong)
    assert "did you mean 'tempered'" in told.getvalue() or "did you mean 'patient'" in told.getvalue(), told.getvalue()
assert not {"torch", "my_things", "stable_baselines3"} & set(sys.modules)
main(sys.argv[2:])
main(["evaluate", sys.argv[1], "--episodes", "1"])
"""
    told = run(package, program, str(out), *words(NAMED, out), installed=True)
    assert "new episodes: 1" in told
    is_as_it_was_asked_for(out, "tempered", "swing/light-v0", "patient", "lazy", "gap", "squares")


@pytest.mark.slow
def test_modules_of_the_current_folder_are_named_and_a_run_that_was_cut_off_goes_on(
    package: Path, tmp_path: Path
) -> None:
    out, cut, more = tmp_path / "run", tmp_path / "cut", tmp_path / "more"
    program = """
import contextlib, io, sys
from pathlib import Path
from unittest import mock
from rlhf_bilevel.__main__ import main
out, cut, more = sys.argv[1:4]
main([*sys.argv[4:], "--out", out])

from rlhf_bilevel.runs import session
from rlhf_bilevel.runs.moment import Moment
assert Moment.of(Path(out), trust=True).method == "tempered"  # its own name
def until(run):
    for row in session.loop.interact(run):
        yield row
class Cut(BaseException): pass
whole = session.loop.train
def some(run):
    for row in whole(run):
        yield row
        if run.step == 100: raise Cut
with contextlib.suppress(Cut), mock.patch.object(session.loop, "train", some):
    main([*sys.argv[4:], "--out", cut, "--checkpoint-every", "1"])
for words in (["resume", cut], ["evaluate", out], ["fork", out, "--out", more, "--steps", "200"]):
    with contextlib.redirect_stderr(io.StringIO()) as told, contextlib.suppress(SystemExit):
        main(words)
    assert "trust" in told.getvalue() and "my_things" in told.getvalue(), told.getvalue()
    with contextlib.redirect_stdout(io.StringIO()) as told:
        main([*words, "--trust"])
    assert words[0] == "evaluate" or "tempered" in told.getvalue(), told.getvalue()  # its own name
for name in ("policy", "reward"):
    assert Path(out, f"{name}.safetensors").read_bytes() == Path(cut, f"{name}.safetensors").read_bytes()
"""
    line = words(PLACED, out)[:-2]
    run(package, program, str(out), str(cut), str(more), *line)
    names = ("my_things.method:METHOD", "my_things.suite:SUITE/light-v0", "my_things.learner:Patient")
    settings = ("my_things.teacher:TEACHER", "my_things.rule:RULE", "my_things.reward:Squares")
    for folder in (out, cut, more):
        is_as_it_was_asked_for(folder, *names, *settings)
    assert read_yaml(more / "config.yaml")["settings"]["total_timesteps"] == 200


@pytest.mark.slow
def test_a_sweep_and_a_search_take_them_too(package: Path, tmp_path: Path) -> None:
    program = "import sys; from rlhf_bilevel.__main__ import main; main(sys.argv[1:])"
    line = words(PLACED, tmp_path)[1:-2]
    for _ in range(2):  # the second one finds all that it asks for
        told = run(package, program, "sweep", *line, "--seeds", "2", "--jobs", "1", "--out", str(tmp_path / "sweep"))
    assert told.splitlines()[1].split()[0] == "tempered"  # its own name
    for seed in (0, 1):
        folder = tmp_path / "sweep" / f"my_things.method.METHOD-light-v0-{seed}"
        assert read_yaml(folder / "config.yaml")["algorithm"] == "my_things.learner:Patient"
    search = ["tune", *line, "--tune", "gamma=0.9..0.99", "--trials", "1", "--jobs", "1", "--out", str(tmp_path / "t")]
    assert "--algorithm my_things.learner:Patient" in run(package, program, *search)


@pytest.fixture
def things(package: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The objects of the page's modules, by their places. Names that are given meanwhile are taken back."""
    for kind in KINDS:  # what is installed is known: the page's modules are just there
        _entry_points(kind.group)
    monkeypatch.syspath_prepend(str(package))
    for kind in KINDS:
        monkeypatch.setattr(kind, "_added", {})
        monkeypatch.setattr(kind, "_loaded", dict(kind._loaded))
    places = [place for points in GROUPS.values() for place in points.values()]
    yield {p: getattr(importlib.import_module(p.partition(":")[0]), p.partition(":")[2]) for p in places}
    for name in [name for name in sys.modules if name.startswith("my_things")]:
        del sys.modules[name]


def test_objects_in_python_are_used(things: dict[str, Any], tmp_path: Path) -> None:
    method, teacher, rule, form, learner, suite = (things[next(iter(GROUPS[kind.group].values()))] for kind in KINDS)
    QUERY_RULES.add("mine", rule)
    REWARD_FORMS.add("mine", form)
    SUITES.add("mine", suite)
    settings: dict[str, Any] = {"query": "mine", "reward_form": "mine", "segment_length": 10, "net_arch": 8}
    settings |= {"labels": 4, "learning_starts": 20, "pretrain_steps": 20, "eval_freq": 80, "n_eval_episodes": 1}
    agent = Agent(method, "mine/heavy-v0", teacher=teacher, algorithm=learner, out=tmp_path / "run", **settings)
    agent.learn(80)
    assert agent.run is not None and type(agent.run.learners[0]) is learner and type(agent.reward) is form
    assert agent.reward.names(list("abcd"))[-1] == "d^2" and agent.reward.unit.shape == (8,)
    again = Agent.load(tmp_path / "run", method=method, algorithm=learner)
    assert again.predict(again.make_env().reset()[0])[0].shape == (1,)
    with pytest.raises(UserError, match=r"algorithm of your own, Patient: give it as algorithm="):
        Agent.load(tmp_path / "run", method=method)


def test_a_class_of_teachers_is_made_with_the_settings_and_the_buffer(tmp_path: Path) -> None:
    class Lower(SimulatedTeacher):
        """Prefers what the environment pays less for."""

        def __call__(self, queries: Queries) -> Preferences:
            answers = super().__call__(queries)
            return answers._replace(label=1 - answers.label)

    settings: dict[str, Any] = {"labels": 4, "learning_starts": 20, "eval_freq": 100, "segment_length": 10}
    agent = Agent("pebble", "tests.conftest:Steer-v0", teacher=Lower, out=tmp_path / "run", **settings).learn(100)
    pairs = agent.run.prefs[:]
    returns = [segments.env_reward.sum(1) for segments in (pairs.first, pairs.second)]
    assert (pairs.label == (returns[0] < returns[1]).float()).all()
    assert read_yaml(tmp_path / "run" / "config.yaml")["teacher"] == "Lower"

    class Alone(Lower):
        def __init__(self) -> None: ...

    with pytest.raises(UserError, match=r"teacher Alone cannot be made: .*takes 1 positional argument"):
        Agent("pebble", "tests.conftest:Steer-v0", teacher=Alone, out=tmp_path / "none", **settings).learn(100)
    assert not (tmp_path / "none").exists()


def test_every_kind_of_algorithm_of_sb3_has_a_name(things: dict[str, Any]) -> None:
    def algorithm(name: str, method: str = "pebble") -> Any:
        return Agent(method, "Pendulum-v1", algorithm=name, labels=4)._parts.algorithm

    assert algorithm("TD3") is algorithm("stable_baselines3:TD3") is TD3
    for name, told in (("stable_baselines3:A2C", "off-policy"), ("PPO", "pebble takes any off-policy"),
                       ("pathlib:Path", "no types.Learner: no act"), ("os:getcwd", "must be a type")):  # fmt: skip
        with pytest.raises(UserError, match=told):
            algorithm(name)


BROKEN = {
    "raises": "raise ValueError('two\\nlines')",
    "exits": "raise SystemExit(3)",
    "syntax": "def",
    "needs": "import no_such_library",
    "holds": "NUMBER = 3\n\n\ndef FUNCTION():\n    pass\n\n\nclass CLASS:\n    pass\n",
}


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with modules that cannot be used."""
    (tmp_path / "broken").mkdir()
    for name, text in BROKEN.items():
        (tmp_path / "broken" / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("broken")]:
        del sys.modules[name]


@pytest.mark.parametrize("kind", KINDS[:5], ids=lambda kind: kind.kind)
def test_what_is_wrong_with_a_module_or_its_object_is_told_in_one_line(
    broken: Path, kind: Registry[Any], capsys: pytest.CaptureFixture
) -> None:
    option = {
        "method": "{}",
        "teacher": "pebble --teacher {}",
        "query rule": "pebble --set query={}",
        "reward form": "pebble --set reward_form={}",
        "learner": "pebble --algorithm {}",
    }[kind.kind]
    for place, told in (
        ("broken.raises:X", "cannot be imported: ValueError: two lines"),
        ("broken.exits:X", "cannot be imported: SystemExit: 3"),
        ("broken.syntax:X", "cannot be imported: SyntaxError"),
        ("broken.needs:X", "No module named 'no_such_library'"),
        ("broken.missing:X", "No module named 'broken.missing'"),
        ("broken.holds:NUMBR", "broken.holds has no NUMBR; did you mean 'NUMBER'?"),
        ("broken.holds:NUMBER", "it is a int, and must be a"),
        ("broken.holds:", "module:NAME says where it is"),
        ("a b:c", "module:NAME says where it is"),
    ):
        line = f"train {option.replace(' ', chr(0))} --env Pendulum-v1 --steps 60 --labels 4 --out out"
        error = fails(capsys, *(part.format(place) for word in line.split() for part in word.split(chr(0))))
        assert told in error and kind.kind in error and place in error, error
    assert [path.name for path in broken.iterdir()] == ["broken"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--set query=disagrement", "query='disagrement': no query rule has that name; did you mean 'disagreement'?"),
        ("--set reward_form=lineer", "no reward form has that name; did you mean 'linear'?"),
        ("--algorithm sac", "unknown learner 'sac'; did you mean 'SAC'?"),
        ("--teacher oracel", "unknown teacher 'oracel'; did you mean 'oracle'?"),
        ("--set teacher_object=x", "no teacher has that name"),
        ("--teacher broken.holds:FUNCTION --set teacher_replay=x", "teacher_replay and teacher_object are 2 teachers"),
        ("--set query=broken.holds:FUNCTION", "it must take (members, candidates, labelled, count): too many"),
        ("--set reward_form=broken.holds:CLASS", "it is the class CLASS, and must be a subclass of RewardEnsemble"),
        ("--algorithm broken.holds:CLASS", "no algorithm of SB3, and no types.Learner: no act"),
    ],
)
def test_a_wrong_name_or_object_is_told_in_one_line(
    broken: Path, capsys: pytest.CaptureFixture, words: str, told: str
) -> None:
    command = f"train pebble --env Pendulum-v1 --steps 60 --labels 4 --out out {words}"
    assert told in fails(capsys, *command.split())
    assert not (broken / "out").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("raise KeyError('x')", r"query rule strange.rule:RULE: KeyError: .*strange/rule.py, line 2\)"),
        ("return None", "must return Queries, some of its candidates, not None"),
        ("return candidates", "must choose 1 to 1 different pairs"),
        ("return candidates._replace(first=candidates.first._replace(obs=candidates.first.obs + 1))", "other pairs"),
        ("candidates.first.obs.zero_(); return candidates", "other pairs"),
    ],
)
def test_a_query_rule_that_gives_anything_but_its_candidates_ends_the_run_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, told: str
) -> None:
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "rule.py").write_text(f"def RULE(members, candidates, asked, count):\n    {text}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(QUERY_RULES, "_loaded", {})
    from tests.conftest import build
    from tests.training.test_loop import train

    small = {"labels": 6, "queries_per_session": 2, "learning_starts": 20, "pretrain_steps": 20, "num_interact": 10}
    try:
        with pytest.raises(UserError, match=told):
            list(train(build("pebble", total_timesteps=100, query="strange.rule:RULE", **small)))
    finally:
        for name in [name for name in sys.modules if name.startswith("strange")]:
            del sys.modules[name]


def test_a_strangers_folder_imports_no_module_without_trust(
    things: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Whichever entry of config.yaml names it, and also where it is imported already."""
    (tmp_path / "canary.py").write_text("from pathlib import Path\nPath('it-ran').touch()\n")
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "run"
    Agent("sac", "Pendulum-v1", out=out, net_arch=8, eval_freq=40, n_eval_episodes=1).learn(40)
    config = (out / "config.yaml").read_text()
    for key, was in (("method", "sac"), ("algorithm", "SAC"), ("query", "uniform"), ("reward_form", "additive"),
                     ("teacher_object", "''"), ("env", "Pendulum-v1")):  # fmt: skip
        for place in ("canary:X", "os:system") if key != "env" else ("canary:X",):
            text = re.sub(rf"(?m)^( *{key}: ){was}$", rf"\g<1>{place}", config)
            assert text != config
            (out / "config.yaml").write_text(text)
            for words in ("evaluate run", "resume run", "fork run --out other", "export run --sb3 x.zip"):
                error = fails(capsys, *words.split())
                assert "--trust" in error or "has come to its end" in error, error
            train = f"train sac --env Pendulum-v1 --steps 40 --config {out / 'config.yaml'} --out other".split()
            if key in ("query", "reward_form", "teacher_object"):
                told = fails(capsys, *train)
                assert f"names a module: if you trust it, say so with --set {key}={place}" in told
    assert not (tmp_path / "it-ran").exists() and not (tmp_path / "other").exists()


def test_options_of_a_users_method_are_set_and_read_from_a_runs_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "optioned.py").write_text(
        "from dataclasses import replace\nfrom rlhf_bilevel.baselines.rune import RUNE\n"
        "METHOD = replace(RUNE, name='mine')\n"
    )
    monkeypatch.chdir(tmp_path)

    def config(words: str) -> Config:
        args = parser().parse_args(f"train optioned:METHOD --env Pendulum-v1 --steps 300 {words}".split())
        return run_options.spec(args, args.method, args.env).resolve()

    own = config("--set mine.beta=0.5")
    assert own.options["beta"] == 0.5 and config("").options["beta"] == 0.05
    told = {"method": "optioned:METHOD", "settings": own.model_dump(mode="json")}
    (tmp_path / "config.yaml").write_bytes(config_bytes(told | {"algorithm_settings": {}}))
    assert config("--config config.yaml") == own
    with pytest.raises(UserError, match=r"mine\.bta.*did you mean 'mine\.beta'"):
        config("--set mine.bta=0.5")
    check_owners("optioned:METHOD", ["mine.beta", "labels"])
    with pytest.raises(UserError, match="surf alone has it, and this is mine"):
        check_owners("optioned:METHOD", ["surf.threshold"])


def test_a_broken_package_is_in_the_way_of_its_own_things_alone(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SUITES, "_packages", lambda: {"gone": "no_such_package:SUITE"})
    assert registration.resolve("walker_walk") == "dm_control/walker-walk-v0"
    assert registration.resolve("Pendulum-v1") == "Pendulum-v1"
    with pytest.raises(UserError, match=r"suite gone \(no_such_package:SUITE\): .*No module named 'no_such_package'"):
        registration.resolve("gone/task-v0")
    with pytest.warns(UserWarning, match="suite gone"), pytest.raises(UserError, match="Pendulum-v1"):
        registration.resolve("pendulum-v1")


def test_suites_tell_the_nearest_of_their_tasks(things: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"nearest are my_things\.suite:SUITE/light-v0"):
        registration.resolve("my_things.suite:SUITE/ligt-v0")
    SUITES.add("mine", things["my_things.suite:SUITE"])
    with pytest.raises(UserError, match="nearest are mine/heavy-v0"):
        registration.resolve("mine/havy-v0")
    env = registration.make("mine/heavy-v0", seed=0, stream=1)
    assert env.unwrapped.g == 15.0 and env.limit == 200  # type: ignore[attr-defined]
    assert registration.entry_names(env)[:2] == ["obs[0]", "obs[1]"]


def test_names_are_not_taken_twice(things: dict[str, Any]) -> None:
    for name in ("uniform", "a:b", ""):
        with pytest.raises(UserError, match="choose another name"):
            QUERY_RULES.add(name, things["my_things.rule:RULE"])
    with pytest.raises(UserError, match="query rule mine: it is a int, and must be a Callable"):
        QUERY_RULES.add("mine", 3)  # type: ignore[arg-type]


def test_our_own_things_are_where_the_tables_say() -> None:
    for kind in KINDS:
        for name in kind.ours:
            kind._check(name, kind[name])
    assert registries.SUITES is SUITES
