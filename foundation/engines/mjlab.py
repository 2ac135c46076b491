"""Engine for mjlab: Isaac Lab's manager-based tasks on MuJoCo Warp, with any registered ``Mjlab-`` task."""

# mjlab has an environment of its own, so a type checker may not find it.
# pyright: reportMissingImports=false

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import importlib.util
import io
import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ClassVar, cast

from foundation.core.devices import check_device
from foundation.core.errors import UserError
from foundation.core.registry import refuse_untyped, resolve_module
from foundation.core.text import one_line
from foundation.engines.base import (
    AGENT_ENTRY_POINT,
    Configure,
    Engine,
    LaunchRequest,
    MissingPackage,
    VecEnv,
    VideoRequest,
)
from foundation.engines.headless import prepare_rendering
from foundation.engines.mjlab_vec_env import MjlabVecEnv, graphs_agree
from foundation.engines.random_state import RandomState
from foundation.engines.video import ActionClip, VideoRecorder
from foundation.tasks import CANNOT_IMPORT

logger = logging.getLogger(__name__)

INSTALL = "pip install 'mjlab>=1.6' in an environment without Isaac Lab 3.0"
NUM_ENVS = 64
"""Number of environments where neither the task nor the user gives one."""
_PREFIX = "Mjlab-"
"""Beginning of the ids of mjlab's own tasks; other packages may register others."""


class MjlabEngine(Engine):
    """Run tasks of mjlab, and of packages that register theirs with it."""

    name: ClassVar[str] = "mjlab"
    envs_per_process: ClassVar[int | None] = 1  # a step costs the more the more environments there are, even idle ones

    def __init__(self) -> None:
        self._task: str | None = None
        self._graphs = False

    # -- what can run here ----------------------------------------------------------------------------------------

    @classmethod
    def why_not(cls, task: str) -> str | None:
        """Return why the task cannot run here, or None. Imports mjlab, and the module of ``module:Id``."""
        name = task.rpartition(":")[2]
        if not _is_installed():
            missing = f"mjlab is not installed here: {INSTALL}"
            return MissingPackage(missing) if name.startswith(_PREFIX) else missing
        try:
            return None if _find(task) in cls.task_names() else "does not know it"
        except _MissingPartsError as error:
            return MissingPackage(error) if name.startswith(_PREFIX) else str(error)
        except UserError as error:
            return CANNOT_IMPORT if isinstance(error.__cause__, ImportError | SyntaxError) else str(error)

    @classmethod
    def task_names(cls) -> list[str]:
        """List the registered tasks; none where mjlab is not installed."""
        if not _is_installed():
            return []
        try:
            _import_mjlab()
        except _MissingPartsError:
            return []
        from mjlab.tasks.registry import list_tasks

        return list(list_tasks())

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        """Add the flag of the graphs."""
        group = parser.add_argument_group("mjlab")
        group.add_argument(
            "--cpu_graphs",
            action="store_true",
            help="on the CPU: replay the simulator's kernels as graphs, if a trial gives the same bits",
        )

    # -- a session ------------------------------------------------------------------------------------------------

    def launch(self, request: LaunchRequest, configure: Configure) -> AbstractContextManager[tuple[Any, Any]]:
        """Load the task's configurations, let ``configure`` change them, and yield them."""
        return self._session(request, configure)

    @contextmanager
    def _session(self, request: LaunchRequest, configure: Configure) -> Iterator[tuple[Any, Any]]:
        check_device(request.device)
        env_cfg, agent_cfg = self.load_configs(request)
        self.set_common(env_cfg, num_envs=None, seed=None, device=request.device)
        configure(env_cfg, agent_cfg)
        self._task = _find(request.task)
        self._graphs = bool(getattr(request.args, "cpu_graphs", False))
        try:
            yield env_cfg, agent_cfg
        finally:
            self._task = None

    def load_configs(self, request: LaunchRequest) -> tuple[Any, Any]:
        """Load copies of the task's configurations.

        They are mjlab's, but for four things: ``env.sim.device`` is there as in Isaac Lab, the logger is TensorBoard's
        (theirs is wandb's), no two observation groups share a term, so that an override changes the one it names, and
        there are :data:`NUM_ENVS` environments where the task leaves their number at 1, for its command line to set.
        """
        reason = self.why_not(request.task)
        if reason == CANNOT_IMPORT:
            resolve_module(request.task, "task", typed_as="--task")
        if reason is not None:
            raise UserError(f"--task {request.task}: {reason}")
        if request.agent_entry_point != AGENT_ENTRY_POINT:
            raise UserError(f"--agent {request.agent_entry_point}: mjlab's tasks have one agent config; leave it out")
        from mjlab.tasks.registry import load_env_cfg, load_rl_cfg

        task = _find(request.task)
        env_cfg, agent_cfg = load_env_cfg(task), load_rl_cfg(task)
        env_cfg.sim.device = "cpu"
        env_cfg.observations = {name: copy.deepcopy(group) for name, group in env_cfg.observations.items()}
        agent_cfg.logger = "tensorboard"
        if env_cfg.scene.num_envs == 1:
            env_cfg.scene.num_envs = NUM_ENVS
        return env_cfg, agent_cfg

    def set_common(self, env_cfg: Any, *, num_envs: int | None, seed: int | None, device: str | None) -> None:
        """Set number of environments, seed and device where given."""
        if num_envs is not None:
            _need(env_cfg, "scene", "num_envs").num_envs = num_envs
        if seed is not None:
            env_cfg.seed = seed
        if device is not None:
            check_device(device)
            _need(env_cfg, "sim", "device").device = device

    def make_env(self, env_cfg: Any, agent_cfg: Any, *, video: VideoRequest | None = None) -> VecEnv:
        """Build the process's one environment of the launched task, recording it where asked to."""
        if self._task is None:
            raise RuntimeError("make_env is called inside 'with engine.launch(...)'")
        _check(self._task, env_cfg)
        device = str(env_cfg.sim.device)
        logger.info("making %d environments; kernels that are not compiled yet take minutes", env_cfg.scene.num_envs)
        graphs = self._graphs and device.startswith("cpu")
        if graphs and not graphs_agree(lambda: self._build(copy.deepcopy(env_cfg), None)):
            logger.warning("--cpu_graphs: this task's steps differ with graphs, so it runs without them")
            graphs = False
        env: Any = self._build(env_cfg, video)
        if graphs:
            env.use_graphs(True)
            logger.info("CPU graphs are on: a number of steps gave the same bits with and without them")
        if video is not None:
            env = VideoRecorder(env, video)
        clip = getattr(agent_cfg, "clip_actions", None)
        return cast(VecEnv, env if clip is None else ActionClip(env, float(clip)))

    def _build(self, env_cfg: Any, video: VideoRequest | None) -> MjlabVecEnv:
        from mjlab.envs import ManagerBasedRlEnv

        env_cfg.auto_reset = False  # MjlabVecEnv resets, once it has seen the last observations
        random_state = RandomState()
        render_mode = None if video is None else "rgb_array"
        with random_state.active(), _quiet():
            try:
                inner = ManagerBasedRlEnv(cfg=env_cfg, device=str(env_cfg.sim.device), render_mode=render_mode)
            except ValueError as error:  # what mjlab checks itself, such as a body that no entity has
                raise UserError(f"--task {self._task} cannot be made: {one_line(error, 300)}") from error
            return MjlabVecEnv(inner, random_state)


# -- tasks -----------------------------------------------------------------------------------------------------------


def _is_installed() -> bool:
    spec = importlib.util.find_spec("mjlab")
    return spec is not None and spec.origin is not None  # a folder of that name on the path has no origin


class _MissingPartsError(UserError):
    """mjlab was installed without what it needs, as whoever uses its robots' files alone may do."""


def _import_mjlab() -> None:
    """Import mjlab's tasks and those of installed packages, without its lists of kernels and tables."""
    prepare_rendering()  # MuJoCo reads the variable when it is imported
    quiet = os.environ.setdefault("MJLAB_WARP_QUIET", "1")
    with _quiet():
        try:
            importlib.import_module("mjlab.tasks")
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] == "mjlab":
                raise
            missing = f"mjlab is not installed here with '{error.name}', which it needs: {INSTALL}"
            raise _MissingPartsError(missing) from error
    if quiet == "1":  # mjlab's own switch leaves Warp's line for each kernel
        import warp

        warp.config.log_level = warp.LOG_WARNING


def _find(task: str) -> str:
    """Return the id of a task, whose module is imported first where one is named."""
    refuse_untyped(task, "task", "--task")
    _import_mjlab()
    module, _, name = task.rpartition(":")
    if module:
        resolve_module(task, "task", typed_as="--task")
    return name


@contextmanager
def _quiet() -> Iterator[None]:
    """Send what mjlab prints to the debug log."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            yield
    finally:
        if text.getvalue().strip():
            logger.debug("%s", text.getvalue())


def _need(env_cfg: Any, group: str, name: str) -> Any:
    """Return a group of a config, which ``env.scene=null`` may have taken away."""
    found = getattr(env_cfg, group)
    if found is None:
        raise UserError(f"env.{group}=null: the task needs it; set single values of it, env.{group}.{name}=VALUE")
    return found


def _check(task: str, env_cfg: Any) -> None:
    """Refuse what mjlab would fail at, or never come to an end with."""
    num_envs = _need(env_cfg, "scene", "num_envs").num_envs
    if num_envs < 1:
        raise UserError(f"env.scene.num_envs must be at least 1, it is {num_envs}")
    if not env_cfg.episode_length_s > 0.0:
        raise UserError(f"env.episode_length_s must be positive [s], it is {env_cfg.episode_length_s}")
    for name, command in (env_cfg.commands or {}).items():
        motion = getattr(command, "motion_file", None)
        if isinstance(motion, str) and not os.path.isfile(motion):
            what = f"'{motion}' is no file" if motion else "it tracks a recorded motion"
            raise UserError(f"--task {task}: {what}; give env.commands.{name}.motion_file=PATH")
