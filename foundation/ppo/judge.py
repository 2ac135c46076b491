"""Choice of ``best_model.pt``: RSL-RL's runs are evaluated while they train, because PPO oscillates."""

from __future__ import annotations

import logging
from typing import Any

from foundation.engines.base import AgentCfg, MakeEvalEnv
from foundation.ppo.library_runner import RslRlRunner
from foundation.rollout.evaluate import evaluate
from foundation.runs.context import EVAL_SEED, FINAL_SEED
from foundation.runs.run_dir import RunDir

log = logging.getLogger(__name__)

FINAL_EPISODES = 1024
"""Fresh episodes on which the best policy is re-measured at the end."""


class Judge:
    """Measures the policy every ``eval_interval`` iterations and keeps the best as ``best_model.pt``.

    Where the engine can hold a second environment the measure is the mean return of deterministic episodes, always
    from the same initial states; elsewhere it is the mean return of the last training episodes.
    """

    def __init__(self, make_eval_env: MakeEvalEnv | None, agent_cfg: AgentCfg, runner: RslRlRunner, run: RunDir):
        """Build the second environment where that is possible.

        Args:
            make_eval_env: Builds it, and closes it in the end; None where a process can hold only one.
            agent_cfg: With ``eval_interval`` and ``num_eval_episodes``, which RSL-RL's own configs do without.
            runner: Trains the policy.
            run: Where ``best_model.pt`` goes.
        """
        self.runner = runner
        self.run = run
        self.iteration = -1
        self.interval = int(getattr(agent_cfg, "eval_interval", 10))
        self.episodes = int(getattr(agent_cfg, "num_eval_episodes", 128))
        self.best: dict[str, float] = {}
        self._make = make_eval_env
        self.env = None
        if make_eval_env is not None and self.interval > 0:
            self.env = make_eval_env(self.episodes)

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
        if self.env is not None and self._make is not None:
            env = self._make(FINAL_EPISODES)
            policy = self.runner.inference_policy(path)
            fresh = figures["fresh"] = evaluate(env, policy, FINAL_EPISODES, FINAL_SEED).summary()
            survival = f", success {fresh['success_rate']:.2%}" if "success_rate" in fresh else ""
            text = f"mean return {fresh['mean_return']:.2f}{survival} on {FINAL_EPISODES} fresh episodes"
        self.run.write_summary(figures)
        print(f"Best policy, of iteration {self.best['iteration']:.0f}: {text}\n{path}")
        print(f"Trained in {wall:.0f} s ({cpu:.0f} CPU s)", flush=True)
