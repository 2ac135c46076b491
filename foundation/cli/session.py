"""A session: a launched engine, the configs of its task, and the environments made in it."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

from foundation.config.env_state import EnvState, read_env_state
from foundation.core.errors import UserError
from foundation.core.files import load_checkpoint
from foundation.engines.base import (
    AgentCfg,
    Configure,
    Engine,
    EnvCfg,
    LaunchRequest,
    MakeEvalEnv,
    VecEnv,
    VideoRequest,
    keeps_curriculum,
)

logger = logging.getLogger(__name__)


def recorded_env_state(checkpoint: str | Path) -> EnvState | None:
    """Return the curriculum that a policy was trained with; None where its file has no entry for it."""
    try:
        values = load_checkpoint(Path(checkpoint))
    except UserError:  # of another kind: whoever reads the policy raises what is wrong with it
        return None
    return read_env_state(values, f"'{checkpoint}'")


def _as_it_is(env: VecEnv) -> VecEnv:
    return env


class Session:
    """A launched engine. Every environment that is still open is closed when the session ends.

    Args:
        engine: The engine; its simulator is running.
        env_cfg: The environment's config, with flags and overrides applied.
        agent_cfg: The agent's config, likewise.
    """

    def __init__(self, engine: Engine, env_cfg: EnvCfg, agent_cfg: AgentCfg):
        self.engine = engine
        self.env_cfg = env_cfg
        self.agent_cfg = agent_cfg
        self.derive: Callable[[VecEnv], VecEnv] = _as_it_is
        """Adds to an environment what a policy reads beside its own observation groups."""
        self.env_state: EnvState | None = None
        """Curriculum of a policy's training, which the environments that keep one go on from."""
        self._open: list[VecEnv] = []

    @classmethod
    @contextlib.contextmanager
    def launch(cls, engine: Engine, request: LaunchRequest, configure: Configure) -> Iterator[Session]:
        """Start the simulator, and close it when the session ends.

        Args:
            engine: Starts it.
            request: The task, the device and the launcher's own flags.
            configure: Applies flags and overrides to the configs of environment and agent.
        """
        with engine.launch(request, configure) as (env_cfg, agent_cfg):
            session = cls(engine, env_cfg, agent_cfg)
            try:
                yield session
            finally:
                session.close()

    @property
    def holds_many(self) -> bool:
        """Whether a second environment can be made beside the first."""
        return self.engine.envs_per_process != 1

    @property
    def make_eval_env(self) -> MakeEvalEnv | None:
        """The function that makes evaluation environments; None where a process can hold only one environment."""
        return self.make_env if self.holds_many else None

    def make_env(
        self, num_envs: int | None = None, *, seed: int | None = None, video: VideoRequest | None = None
    ) -> VecEnv:
        """Make an environment of the task.

        Args:
            num_envs: Number of parallel environments. None: the config's.
            seed: Seed of its random numbers. None: the config's. Given either, a copy of the config is used.
            video: Clips to record.

        Raises:
            UserError: If the engine can hold only one environment, and one is open.
        """
        if self._open and not self.holds_many:
            raise UserError(f"engine '{self.engine.name}' can hold only one environment in a process")
        env_cfg = self.env_cfg
        if num_envs is not None or seed is not None:
            env_cfg = copy.deepcopy(self.env_cfg)
            self.engine.set_common(env_cfg, num_envs=num_envs, seed=seed, device=None)
        env = self.engine.make_env(env_cfg, self.agent_cfg, video=video)
        self._open.append(env)
        if self.env_state is not None and keeps_curriculum(env):
            env.load_env_state(self.env_state)
            logger.info("the curriculum goes on after %d env steps", self.env_state.common_step_counter)
        self._open[-1] = self.derive(env)  # it is closed, too, where this fails
        return self._open[-1]

    @contextlib.contextmanager
    def temporary_env(self, num_envs: int) -> Iterator[VecEnv]:
        """Make an environment for one measurement, and close it afterwards."""
        env = self.make_env(num_envs)
        try:
            yield env
        finally:
            self.close_env(env)

    def close_env(self, env: VecEnv) -> None:
        """Close one environment before the session ends; a second call does nothing."""
        self._open = [other for other in self._open if other is not env]
        close = getattr(env, "close", None)
        if close is not None:  # a user's own engine may return an environment without close()
            close()

    def set_log_dir(self, path: Path) -> None:
        """Set the run's folder in the config of the environments that are made from here on."""
        self.engine.set_log_dir(self.env_cfg, path)

    def close(self) -> None:
        """Close the environments, the newest first; a second call does nothing."""
        with contextlib.ExitStack() as stack:  # the others are closed even if one raises
            for env in self._open:
                stack.callback(self.close_env, env)
