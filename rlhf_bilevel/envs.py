"""Environments by name, every episode of which is a function of (seed, stream, episode) and of nothing else.

Episode k of an env that has run for days equals, bit for bit, episode k of a fresh one under the same actions; so a
run resumes by setting one number, and two methods meet the same starts. What ``make`` returns also has flat float32
observations and bounded actions, whichever family it comes from: Gymnasium, the dm_control suite or Meta-World v3.
No simulator is imported before it is made, no OpenGL before a picture is asked for, and numpy's and Python's global
generators are neither read nor moved.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import math
import os
import re
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box

from rlhf_bilevel import interface
from rlhf_bilevel.errors import UserError
from rlhf_bilevel.files import one_line
from rlhf_bilevel.interface import ABSORBED, InvalidEnvError, NotFiniteError, unlearnable

LONGEST = 10_000  # steps of an episode that has no time limit of Gymnasium's
PROTOCOLS = ("bpref", "mt1")
"""Meta-World's goal, random in every episode: hidden from the observation (as B-Pref ran it), or visible in it."""


def resolve(env_id: str) -> str:
    """The canonical id of an environment, from a canonical id or the literature's name for it.

    ``walker_walk`` is dm_control/walker-walk-v0; ``metaworld_door-open-v2`` is Meta-World/door-open-v3, with a warning.
    ``module:Id-v0`` imports the module that registers the id, as in Gymnasium, also from the current folder. UserError,
    with the nearest known ids, where there is none, and where the module fails.
    """
    module, colon, name = env_id.rpartition(":")
    if colon:
        if not all(part.isidentifier() for part in module.split(".")) or not name:
            raise UserError(f"unknown environment {env_id!r}: module:Id-v0 names a Python module and an id")
        with refusing(f"{env_id}: the module {module} cannot be imported"), _here():
            importlib.import_module(module)
    known = {spec: spec for spec in gymnasium.registry if not spec.startswith(("dm_control/", "Meta-World/"))}
    if not colon:
        known |= _task_ids()
    if name not in known:
        near = [known[key] for key in difflib.get_close_matches(name, known, n=6, cutoff=0.5)]
        hint = f"; the nearest are {', '.join(list(dict.fromkeys(near))[:3])}" if near else ""
        raise UserError(f"unknown environment {env_id!r}{hint}")
    if known[name].startswith("Meta-World/") and name.endswith("-v2"):
        warnings.warn(f"{env_id} runs as {known[name]}: results are not comparable with v2's", stacklevel=2)
    return env_id if colon else known[name]


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Code of others, which may raise anything: UserError in one line, with what to install where the error says so."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, UserError):
            raise
        told = one_line(error)
        if isinstance(error, ModuleNotFoundError) and error.name and error.name not in what:
            told += f"; pip install {error.name.partition('.')[0]}"
        elif not isinstance(error, ImportError | gymnasium.error.Error):
            last = traceback.extract_tb((error.__cause__ or error).__traceback__)[-1]  # Gymnasium raises it again
            told = f"{type(error).__name__}: {told} ({last.filename}, line {last.lineno})"
        raise UserError(f"{what}: {told}") from error


@contextmanager
def _here() -> Iterator[None]:
    """Modules in the current folder are found, as ``python -m`` finds them."""
    path = os.getcwd()
    sys.path.insert(0, path)
    try:
        yield
    finally:
        with suppress(ValueError):
            sys.path.remove(path)


def make(
    env_id: str,
    seed: int,
    stream: int = 0,
    protocol: str = "bpref",
    render_mode: str | None = None,
    action_repeat: int = 1,
    absorb: bool = False,
) -> gymnasium.Env[np.ndarray, np.ndarray]:
    """An environment that is ready to train on: observations (o,) float32, actions (a,) within a bounded Box.

    ``seed`` (>= 0) is the run's; ``stream`` (>= 0) tells apart the envs of one run, such as training and evaluation.
    ``protocol`` is one of PROTOCOLS and matters to Meta-World alone. ``render_mode`` is None or "rgb_array".
    ``action_repeat`` steps of the simulator make one step of the environment; their rewards are summed.
    With ``absorb`` an episode that ends for good goes on in an absorbing state until the time limit (``Absorb``).
    Raises UserError for an unknown id, protocol or mode, for spaces that are not as above, where a library is missing
    that the environment needs, where what is registered makes none, and where ``absorb`` finds no time limit;
    RuntimeError where a picture is asked for and OpenGL is missing.
    """
    canonical = resolve(env_id)
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}; choose from {', '.join(PROTOCOLS)}")
    if render_mode not in (None, "rgb_array"):
        raise UserError(f"unknown render_mode {render_mode!r}; choose None or 'rgb_array'")
    env = _made(canonical, protocol, render_mode)
    with refusing(f"{canonical} cannot be used"):
        fault = unlearnable(*(getattr(env, name, None) for name in ("observation_space", "action_space")))
    if fault:
        with suppress(Exception, SystemExit):
            env.close()
        raise UserError(f"{env_id}: {fault}")
    if render_mode is not None and hasattr(env.unwrapped, "mujoco_renderer"):
        _find_opengl()
    limit = _limit(env)
    episodes: Any = Episodes(env, seed, stream, limit)
    if action_repeat > 1:
        episodes = Repeat(episodes, action_repeat)
    if not absorb:
        return episodes
    if limit is None:
        told = f"termination=absorb needs a time limit, and {canonical} tells none: register it with max_episode_steps"
        raise UserError(f"{told}, or choose termination=nonnegative")
    return Absorb(episodes, math.ceil(limit / action_repeat))


def check(env_id: str, settings: Mapping[str, Any]) -> int | None:
    """UserError where a run with these settings of ``Config`` could not learn on the environment: before it has begun.

    The environment is made, reset and stepped once. An error of its own may pass, and is ``guard``'s; where it is to
    run in a process of its own (``env_timeout``), it is only made. Returns ``Episodes.limit``.
    """
    env: Any = make(env_id, settings.get("seed", 0), protocol=settings.get("protocol", "bpref"))
    try:
        if not settings.get("env_timeout"):
            env.reset()
            env.step(env.action_space.sample())
    except NotFiniteError:
        pass
    except InvalidEnvError as error:
        raise UserError(f"{env_id}: {error}") from error
    except (Exception, SystemExit):
        pass
    finally:
        with suppress(Exception, SystemExit):
            env.close()
    return env.limit


def _made(canonical: str, protocol: str, render_mode: str | None) -> gymnasium.Env[Any, Any]:
    family, _, name = canonical.rpartition("/")
    if family == "dm_control":
        domain, _, task = name.removesuffix("-v0").partition("-")
        return Suite(domain, task, render_mode)
    if family == "Meta-World":
        return Sawyer(name, protocol, render_mode)
    # Not every env takes the argument
    drawn: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
    with refusing(f"{canonical} cannot be made"), _here():
        return gymnasium.make(canonical, disable_env_checker=True, **drawn)


def names(env: gymnasium.Env[Any, Any]) -> list[str]:
    """Of the observation's entries and then the action's: what the suite calls them, else obs[0], act[0], ..."""
    known: tuple[list[str], list[str]] = env.unwrapped.names if isinstance(env.unwrapped, Suite) else ([], [])
    spaces, found = (env.observation_space, env.action_space), list[str]()
    for own, space, word in zip(known, spaces, ("obs", "act"), strict=True):
        size = int(np.prod(space.shape or ()))
        told = own or [f"{word}[{i}]" for i in range(size)]
        found += [*told, *["absorbed"] * (size - len(told))]  # the entry of ``Absorb``
    return found


def _limit(env: gymnasium.Env[Any, Any]) -> int | None:
    """Simulator steps after which an episode ends at the latest; None where the environment does not tell."""
    inner: Any = env.unwrapped
    if isinstance(inner, Suite):
        return inner.limit
    told = env.spec.max_episode_steps if env.spec else getattr(inner, "max_path_length", None)
    return None if told is None else int(told)


class Episodes(gymnasium.Wrapper[np.ndarray, np.ndarray, Any, np.ndarray]):
    """``reset`` number k starts episode k of (seed, stream); observations are cast to flat float32.

    ``episode`` is the number of the next episode; set it to resume, or to meet the same starts again (through other
    wrappers: ``env.set_wrapper_attr("episode", k)``). A seed given to ``reset`` is ignored, because Stable-Baselines3
    gives one to the first reset only and would so move one episode off its place; ``make`` is where the seed is set.

    What the environment returns is checked and copied, and so is the action that it gets: raises ``InvalidEnvError``.
    An episode that no time limit of Gymnasium's ends is cut after ``LONGEST`` steps, with a warning. ``limit`` is the
    number of simulator steps after which an episode ends at the latest, None where it is not known.
    """

    def __init__(self, env: gymnasium.Env[Any, np.ndarray], seed: int, stream: int, limit: int | None = None) -> None:
        super().__init__(env)
        self.limit = limit
        if seed < 0 or stream < 0:
            raise UserError(f"seed and stream must not be negative, got {seed} and {stream}")
        self.episode, self._key = 0, (seed, stream)
        space = env.observation_space
        assert isinstance(space, Box)
        self._shape = space.shape
        with np.errstate(over="ignore"):
            low, high = (bound.ravel().astype(np.float32) for bound in (space.low, space.high))
        self.observation_space = Box(low, high, dtype=np.float32)
        limited = env.spec is not None and env.spec.max_episode_steps is not None
        self._left, self._longest = 0.0, math.inf if limited else LONGEST

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        del seed
        draw = np.random.SeedSequence([*self._key, self.episode]).generate_state(1)
        try:
            told = self.env.reset(seed=int(draw[0]), options=options)
        except Exception as error:
            _explain(error, "reset(seed=..., options=...)", interface.RESET)
            raise
        obs, info = interface.parts(told, 2, "reset", interface.RESET)
        self.episode += 1
        self._left = self._longest
        return interface.observation(obs, self._shape), interface.info(info)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        try:
            told = self.env.step(np.array(action))
        except Exception as error:
            _explain(error, "step(action)", interface.STEP)
            raise
        obs, reward, terminated, truncated, info = interface.parts(told, 5, "step", interface.STEP)
        over = interface.flag("terminated", terminated), interface.flag("truncated", truncated)
        self._left -= 1
        if self._left <= 0 and not any(over):
            warnings.warn(
                f"an episode is cut after {LONGEST:,} steps, as by a time limit, for the environment has not ended it: "
                "say how long episodes are with gymnasium.register(..., max_episode_steps=...)",
                stacklevel=2,
            )
            over = False, True
        return interface.observation(obs, self._shape), interface.reward(reward), *over, interface.info(info)


def _explain(error: Exception, call: str, form: str) -> None:
    """Raises InvalidEnvError where an error says that ``call`` is of another interface."""
    if interface.misused(error):
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise InvalidEnvError(
            f"{call} must return {form}, as Gymnasium's interface says; it failed with {told}"
        ) from error


class Counting(gymnasium.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """A wrapper around an environment that counts its episodes, as those of ``make`` do."""

    env: Any

    @property
    def episode(self) -> int:
        """Number of the next episode."""
        return self.env.episode

    @episode.setter
    def episode(self, number: int) -> None:
        self.env.episode = number

    @property
    def limit(self) -> int | None:
        """Simulator steps after which an episode ends at the latest; None where that is not known."""
        return self.env.limit


class Absorb(Counting):
    """Episodes that end for good stay in an absorbing state until step ``steps``, so that all are equally long.

    Observations have an entry more at their end, 0 until then. The absorbing state is 0 but for this entry, which is 1;
    whatever is done there, it stays and pays nothing. ``info[ABSORBED]`` is set from the step on that leads there.
    [Kostrikov et al., ICLR 2019, "Discriminator-Actor-Critic"]
    """

    def __init__(self, env: gymnasium.Env[np.ndarray, np.ndarray], steps: int) -> None:
        super().__init__(env)
        inner = env.observation_space
        assert isinstance(inner, Box)
        low, high = np.append(np.minimum(inner.low, 0), 0), np.append(np.maximum(inner.high, 0), 1)
        self.observation_space = Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        self._steps, self._step, self._absorbed = steps, 0, False
        self._state = np.append(np.zeros(inner.shape, np.float32), np.float32(1))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        self._step, self._absorbed = 0, False
        obs, info = self.env.reset(seed=seed, options=options)
        return np.append(obs, np.float32(0)), info

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self._step += 1
        reward, info = 0.0, dict[str, Any]()
        if not self._absorbed:
            obs, reward, self._absorbed, truncated, info = self.env.step(action)
            if not self._absorbed:
                return np.append(obs, np.float32(0)), float(reward), False, truncated, info
        return self._state.copy(), float(reward), False, self._step >= self._steps, info | {ABSORBED: True}


class Repeat(Counting):
    """Each action acts for ``count`` steps, or until the episode ends; success at any of them is success."""

    def __init__(self, env: Episodes, count: int) -> None:
        super().__init__(env)
        self.count = count

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        total, success = 0.0, list[bool]()
        for _ in range(self.count):
            obs, reward, terminated, truncated, info = self.env.step(action)
            total += reward
            if (found := interface.succeeded(info)) is not None:
                success.append(found)
            if terminated or truncated:
                break
        if success:
            info["success"] = any(success)
        return obs, interface.reward(total), terminated, truncated, info


class Suite(gymnasium.Env[np.ndarray, np.ndarray]):
    """A task of the dm_control suite: observations joined in its order, actions scaled to [-1, 1], 1000 steps.

    ``env.unwrapped.physics`` and ``env.unwrapped.task`` are dm_control's own.
    """

    def __init__(self, domain: str, task: str, render_mode: str | None = None) -> None:
        self._env = _suite().load(domain, task)
        self.physics, self.task = self._env.physics, self._env.task
        # quadruped-escape asks for an OpenGL context at every reset; None is its own word for "nothing is drawn".
        self.physics._make_rendering_contexts = lambda: None
        spec = self._env.action_spec()
        self._centre, self._radius = (spec.maximum + spec.minimum) / 2, (spec.maximum - spec.minimum) / 2
        bound = 1.0 if self._radius.max() < 1e10 else np.inf  # 1e10 is MuJoCo's word for "no limit"
        self.action_space = Box(-bound, bound, spec.shape, np.float32)
        size = sum(int(np.prod(part.shape)) for part in self._env.observation_spec().values())
        self.observation_space = Box(-np.inf, np.inf, (size,), np.float32)
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": round(1 / self._env.control_timestep())}
        self.render_mode = render_mode
        self.mujoco_renderer: Any = None

    @property
    def limit(self) -> int | None:
        steps = self._env._step_limit
        return math.ceil(steps) if math.isfinite(steps) else None

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Of the observation's entries, and of the action's, which are motors."""
        parts = self._env.observation_spec().items()
        obs = [f"{key}[{i}]" if part.shape else key for key, part in parts for i in range(int(np.prod(part.shape)))]
        return obs, [self.physics.model.id2name(i, "actuator") for i in range(self.physics.model.nu)]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        if seed is not None:
            self.task.random.seed(seed)
        self.close()  # a picture's terrain is uploaded when its context is made, so each episode makes its own
        return _joined(self._env.reset().observation), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        timestep = self._env.step(self._centre + self._radius * action)
        over = timestep.last()
        terminated = over and timestep.discount == 0
        return _joined(timestep.observation), timestep.reward, terminated, over and not terminated, {}

    def render(self) -> np.ndarray:  # type: ignore[override]
        """A frame (480, 480, 3) uint8 of the task's first camera, which follows the body where there is one."""
        if self.mujoco_renderer is None:
            from gymnasium.envs.mujoco.mujoco_rendering import MujocoRenderer

            model, data = self.physics.model.ptr, self.physics.data.ptr
            self.mujoco_renderer = MujocoRenderer(model, data, width=480, height=480, camera_id=0)
        return self.mujoco_renderer.render("rgb_array")

    def close(self) -> None:
        if self.mujoco_renderer is not None:
            self.mujoco_renderer.close()
            self.mujoco_renderer = None


class Sawyer(gymnasium.Wrapper[np.ndarray, np.ndarray, np.ndarray, np.ndarray]):
    """A Meta-World v3 task whose goal is drawn from ``reset(seed)`` in every episode of 500 steps.

    Meta-World by itself ignores that seed; its own ``seed()`` would also reseed the action space, and so make random
    exploration repeat itself in every episode.
    """

    def __init__(self, task: str, protocol: str, render_mode: str | None = None) -> None:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

        env: Any = ALL_V3_ENVIRONMENTS[task](render_mode=render_mode, camera_name="corner2")  # type: ignore[arg-type]
        env._set_task_called = True  # what set_task would fix, the goal above all, is free here
        env._freeze_rand_vec = False
        env.seeded_rand_vec = True  # draw from the env's generator, not from numpy's global one
        env._partially_observable = protocol == "bpref"
        del env.sawyer_observation_space  # cached, and what clips the goal: to zero when it is hidden
        env.observation_space = env.sawyer_observation_space
        super().__init__(env)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        if seed is not None:
            self.unwrapped.np_random = np.random.default_rng(seed)
        return self.env.reset(options=options)

    def render(self) -> np.ndarray:  # type: ignore[override]
        """A frame (480, 480, 3) uint8; the camera hangs upside down, so it is turned by half a circle."""
        return np.ascontiguousarray(np.asarray(self.env.render())[::-1, ::-1])


def _suite() -> Any:
    """dm_control.suite without its renderer, which starts OpenGL when it is imported; pictures are Gymnasium's."""
    import mujoco  # noqa: F401  (first, because it reads MUJOCO_GL too, and keeps its own renderer)

    given = os.environ.pop("MUJOCO_GL", None)
    os.environ["MUJOCO_GL"] = "off"
    try:
        return importlib.import_module("dm_control.suite")
    finally:
        del os.environ["MUJOCO_GL"]
        os.environ |= {"MUJOCO_GL": given} if given else {}


def _joined(observation: dict[str, Any]) -> np.ndarray:
    return np.concatenate(list(observation.values()), axis=None, dtype=np.float32)


@functools.cache
def _find_opengl() -> None:
    """Sets MUJOCO_GL, if unset, to what can draw here: a child tries, since a bad driver may end its process."""
    draw = "import mujoco as m; c = m.GLContext(9, 9); c.make_current(); m.MjrContext(m.MjSpec().compile(), 150)"
    given = os.environ.get("MUJOCO_GL")
    for backend in [given] if given else ["egl", "glfw", "osmesa"]:
        tried = os.environ | {"MUJOCO_GL": backend}
        if subprocess.run([sys.executable, "-c", draw], env=tried, capture_output=True).returncode == 0:
            os.environ["MUJOCO_GL"] = backend
            return
    found = f"MUJOCO_GL={given} does not work here" if given else "no OpenGL was found"
    raise RuntimeError(f"cannot draw pictures: {found}; on Debian or Ubuntu, apt-get install libegl1 libgl1")


@functools.cache
def _task_ids() -> dict[str, str]:
    """Every name of a dm_control suite or Meta-World task to its canonical id, read from sources and not imported."""
    names: dict[str, str] = {}
    for path in [path for folder in _folders("dm_control") for path in folder.glob("suite/*.py")]:
        for task in re.findall(r"(?m)^@SUITE\.add\(.*\)\ndef (\w+)\(", path.read_text("utf-8")):
            canonical = f"dm_control/{path.stem}-{task}-v0"
            names |= {canonical: canonical, f"{path.stem}_{task}": canonical}
    for folder in _folders("metaworld"):
        for task in re.findall(r'(?m)^    "([\w-]+)-v3": envs\.', (folder / "env_dict.py").read_text("utf-8")):
            for name in (task, f"metaworld_{task}", f"Meta-World/{task}"):
                names |= dict.fromkeys([f"{name}-v3", f"{name}-v2"], f"Meta-World/{task}-v3")
    return names


def _folders(package: str) -> list[Path]:
    spec = importlib.util.find_spec(package)
    return [Path(folder) for folder in spec.submodule_search_locations or ()] if spec else []
