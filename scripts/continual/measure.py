"""Measure a checkpoint on every task: return, success, and the divergence from each task's teacher."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from foundation.engines.base import LaunchRequest, VecEnv
from foundation.engines.torch import TorchEngine
from foundation.evaluation.divergence import DivergenceProbe
from foundation.policies.actors import Actor, PolicyActor, RandomActor
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.evaluate import evaluate
from foundation.teachers import TeacherPolicyWrapper

EVAL_SEED = 5_000_011
"""Seed of the initial states; every policy is measured from the same ones."""
BOUND = 1.0
"""The tasks clip actions to it."""


@contextmanager
def opened(task: str, num_envs: int) -> Iterator[VecEnv]:
    """Make the environment of a task on the built-in simulator."""
    engine = TorchEngine()

    def configure(env_cfg: object, agent_cfg: object) -> None:
        engine.set_common(env_cfg, num_envs=num_envs, seed=EVAL_SEED, device="cpu")

    with engine.launch(LaunchRequest(task), configure) as (env_cfg, agent_cfg):
        env = engine.make_env(env_cfg, agent_cfg)
        try:
            yield env
        finally:
            env.close()


def load(checkpoint: Path) -> tuple[TeacherPolicyWrapper, ObsSelector]:
    """Load a policy of any format, and what selects its observations."""
    policy = TeacherPolicyWrapper(str(checkpoint))
    return policy, ObsSelector(policy.obs_groups or ["policy"])


def measure(
    checkpoint: Path | None, tasks: Mapping[str, str], teachers: Mapping[str, Path], episodes: int
) -> dict[str, dict[str, float]]:
    """Measure a policy on every task.

    Args:
        checkpoint: The policy; None: random actions.
        tasks: Name -> gym id.
        teachers: Name of a task -> its teacher, which the policy is compared with on the states that the policy visits.
        episodes: Episodes of each task.

    Returns:
        Name of the task -> ``mean_return``, ``return_interval``, ``success_rate``, and, for a policy, ``action_rmse``
        and (where both have a deviation) ``js_divergence``.
    """
    out = {}
    for name, task in tasks.items():
        with opened(task, episodes) as env:
            probes: list[DivergenceProbe] = []
            actor: Actor = RandomActor(env.num_actions, EVAL_SEED)
            if checkpoint is not None:
                policy, selector = load(checkpoint)
                actor = PolicyActor(policy, selector)
                probes.append(DivergenceProbe(*load(teachers[name]), policy, selector, BOUND))
            result = evaluate(env, actor, episodes, EVAL_SEED, probes)
        figures = result.summary() | {"return_interval": result.return_interval}
        for probe in probes:
            figures |= probe.summary()
        out[name] = figures
    return out
