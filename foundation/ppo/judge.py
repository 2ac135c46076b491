"""Choosing ``best_model.pt``: RSL-RL's runs are evaluated while they train, because PPO oscillates."""

from __future__ import annotations

import copy
import logging
from typing import Any

from foundation.engines.base import Engine
from foundation.ppo.library_runner import RslRlRunner
from foundation.rollout.evaluate import evaluate
from foundation.runs.base import EVAL_SEED, FINAL_SEED
from foundation.runs.run_dir import RunDir

log = logging.getLogger(__name__)

FINAL_EPISODES = 1024
"""Fresh episodes on which the best policy is re-measured at the end."""


class Judge:
    """Measures the policy every ``eval_interval`` iterations and keeps the best as ``best_model.pt``.

    Where the engine can hold a second environment the measure is the mean return of deterministic episodes, always
    from the same initial states; elsewhere it is the mean return of the last training episodes.
    """

    def __init__(self, engine: Engine, env_cfg: Any, agent_cfg: Any, runner: RslRlRunner, run: RunDir):
        """Build the second environment where that is possible."""
        self.runner, self.run, self.iteration = runner, run, -1
        self.interval = int(getattr(agent_cfg, "eval_interval", 10))
        self.episodes = int(getattr(agent_cfg, "num_eval_episodes", 128))
        self.best: dict[str, float] = {}
        self._make = lambda n: _second_env(engine, env_cfg, agent_cfg, n)
        self.env = self._make(self.episodes) if engine.envs_per_process is None and self.interval > 0 else None

    def __call__(self, iteration: int, last: bool = False) -> None:
        """Measure after ``iteration`` if it is due."""
        due = self.interval > 0 and (last or iteration % self.interval == 0)
        if not due or iteration == self.iteration:
            return
        self.iteration = iteration
        figures = self._measure()
        if figures is None:
            return
        for name, value in figures.items():
            self.runner.add_scalar(f"evaluation/{name}", value, iteration)
        better = figures["mean_return"] > self.best.get("mean_return", float("-inf"))
        if better:
            self.best = {**figures, "iteration": iteration}
            self.run.check_there()
            self.runner.save(self.run.path / "best_model.pt", infos={"evaluation": self.best})
        survival = f", success {figures['success_rate']:.1%}" if "success_rate" in figures else ""
        mark = "best so far" if better else f"best {self.best['mean_return']:.2f} at {self.best['iteration']:.0f}"
        log.info("Iteration %d: mean return %.2f%s (%s)", iteration, figures["mean_return"], survival, mark)

    def _measure(self) -> dict[str, float] | None:
        if self.env is None:
            value = self.runner.train_return
            return None if value is None else {"mean_return": value}
        return evaluate(self.env, self.runner.inference_policy(), self.episodes, EVAL_SEED).summary()

    def report(self, wall: float, cpu: float) -> None:
        """Re-measure the best policy on fresh episodes where that is cheap; write and print the figures."""
        if not self.best:
            return
        figures: dict[str, Any] = {"best": self.best, "wall_seconds": wall, "cpu_seconds": cpu}
        path = self.run.path / "best_model.pt"
        text = f"mean return {self.best['mean_return']:.2f}"
        if self.env is not None:
            env = self._make(FINAL_EPISODES)
            policy = self.runner.inference_policy(path)
            fresh = figures["fresh"] = evaluate(env, policy, FINAL_EPISODES, FINAL_SEED).summary()
            getattr(env, "close", lambda: None)()
            survival = f", success {fresh['success_rate']:.2%}" if "success_rate" in fresh else ""
            text = f"mean return {fresh['mean_return']:.2f}{survival} on {FINAL_EPISODES} fresh episodes"
        self.run.write_summary(figures)
        print(f"Best policy, of iteration {self.best['iteration']:.0f}: {text}\n{path}")
        print(f"Trained in {wall:.0f} s ({cpu:.0f} CPU s)", flush=True)

    def close(self) -> None:
        """Close the second environment."""
        if self.env is not None:
            getattr(self.env, "close", lambda: None)()


def _second_env(engine: Engine, env_cfg: Any, agent_cfg: Any, num_envs: int) -> Any:
    cfg = copy.deepcopy(env_cfg)
    engine.set_common(cfg, num_envs=num_envs, seed=EVAL_SEED, device=None)
    return engine.make_env(cfg, agent_cfg)
