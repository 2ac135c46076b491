"""A session makes environments of its task, and closes what it made."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from foundation.cli.session import Session
from foundation.core.errors import UserError
from foundation.engines.base import Engine, LaunchRequest


class Env:
    """Notes when it is closed."""

    def __init__(self, cfg: Any, closed: list[int]):
        self.num_envs, self.seed, self.closed = cfg.num_envs, cfg.seed, closed

    def close(self) -> None:
        self.closed.append(self.num_envs)
        if self.num_envs == 13:
            raise RuntimeError("did not close")


class ToyEngine(Engine):
    """Makes environments that step nothing."""

    name: ClassVar[str] = "toy"

    def __init__(self) -> None:
        self.closed: list[int] = []
        self.up = False

    @classmethod
    def why_not(cls, task: str) -> str | None:
        return None

    @contextmanager
    def launch(self, request: Any, configure: Any) -> Iterator[Any]:
        cfg = SimpleNamespace(num_envs=1, seed=0)
        configure(cfg, None)
        self.up = True
        yield cfg, None
        self.up = False

    def set_common(self, env_cfg: Any, *, num_envs: int | None, seed: int | None, device: str | None) -> None:
        env_cfg.num_envs = env_cfg.num_envs if num_envs is None else num_envs
        env_cfg.seed = env_cfg.seed if seed is None else seed

    def make_env(self, env_cfg: Any, agent_cfg: Any, *, video: Any = None) -> Any:
        assert self.up
        return Env(env_cfg, self.closed)


class OneEnvEngine(ToyEngine):
    """Like Isaac Lab."""

    envs_per_process: ClassVar[int | None] = 1


def launch(engine: ToyEngine) -> Any:
    def configure(env_cfg: Any, agent_cfg: Any) -> None:
        env_cfg.num_envs = 4

    return Session.launch(engine, LaunchRequest("task"), configure)


def test_what_is_open_is_closed_with_the_session_and_nothing_twice():
    """The newest first, while the simulator is up; one that was closed before is left alone."""
    engine = ToyEngine()
    with launch(engine) as session:
        session.make_env()
        assert session.make_eval_env is not None
        session.make_eval_env(7)
        with session.temporary_env(9) as env:
            assert env.num_envs == 9
        assert engine.closed == [9]
    assert engine.closed == [9, 7, 4]


def test_an_environment_that_fails_to_close_keeps_no_other_open():
    """The failure is raised after the others were closed."""
    engine = ToyEngine()
    with pytest.raises(RuntimeError, match="did not close"), launch(engine) as session:
        session.make_env(5)
        session.make_env(13)
    assert engine.closed == [13, 5]


def test_evaluation_environments_have_a_config_of_their_own():
    """Another number of environments and another seed leave the session's config as it was."""
    with launch(ToyEngine()) as session:
        env: Any = session.make_env(9, seed=3)
        assert (env.num_envs, env.seed) == (9, 3)
        own: Any = session.make_env()
        assert (own.num_envs, own.seed) == (4, 0)


def test_an_engine_for_one_environment_makes_no_second():
    """There is no maker of evaluation environments, and who asks all the same is told why not."""
    with launch(OneEnvEngine()) as session:
        assert session.make_eval_env is None
        first = session.make_env()
        with pytest.raises(UserError, match="engine 'toy' can hold only one environment in a process"):
            session.make_env(2)
        session.close_env(first)
        session.make_env(2)
