"""The training of a set of teachers: all together, then again those that did not reach what they had to."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from foundation.core.errors import UserError
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv
from foundation.tasks.quadrotor.training.bptt import BpttCfg, BpttTrainer, PolicyStack
from foundation.tasks.quadrotor.training.fleet_rollout import FleetRollout, FleetRolloutCfg
from foundation.tasks.quadrotor.training.stacked_ppo import StackedPpo, StackedPpoCfg
from teacher_training.fleet import Fleet, Score, initial_policies, measure, remove_offset

MEASURE_SEED, OFFSET_SEED = 100_000, 200_000
OFFSET_EPISODES = 64
"""Where a policy comes to rest needs few."""


@dataclass
class JobCfg:
    """Settings of the training; the defaults are tuned for RAPTOR's family on one CPU core."""

    num_teachers: int = 64
    """Teachers, each on its own vehicle."""
    seed: int = 1
    """Of weights, episodes and noise."""
    hidden_dims: list[int] = field(default_factory=lambda: [64, 64])
    """Hidden layers (ELU)."""
    num_envs: int = 32
    """Environments of each teacher."""
    horizon: int = 50
    """Steps that gradients go back."""
    shared_updates: int = 100
    """First updates, by the mean gradient of all: one policy for all vehicles, from which each teacher goes on."""
    updates: int = 1600
    """Updates of each teacher by its own gradient."""
    more_updates: int = 400
    """Updates of a round for those that did not reach ``min_return`` and ``max_terminated``."""
    max_rounds: int = 2
    """Such rounds at most."""
    more_envs: int = 2
    """How many times as many environments each of those has in such a round."""
    min_return: float = 400.0
    """Mean return below which a teacher has failed."""
    max_terminated: float = 0.002
    """Share of episodes ended by a limit above which a teacher is trained on, as long as there are rounds."""
    motor_noise: float = 0.1
    """Noise on the observed motor speeds in the training."""
    num_episodes: int = 256
    """Episodes of each teacher's measurement; many, as one crash in two hundred is one too many to learn from."""
    compile_from: int = 5_000
    """Steps of the simulator from which a stage's is compiled: that takes half a CPU minute, and saves 7 ms a step."""
    method: str = "bptt"
    """``bptt`` (gradients through the simulator) or ``ppo``."""

    def for_ppo(self) -> None:
        """Take the sizes that PPO wants, where they are still those of ``bptt``."""
        sizes = {"num_envs": 256, "shared_updates": 0, "updates": 250, "more_updates": 100, "more_envs": 1}
        for name, value in sizes.items():
            if getattr(self, name) == JobCfg.__dataclass_fields__[name].default:
                setattr(self, name, value)


class TeacherJob:
    """Trains the teachers of a fleet; what it has done can be saved between any two updates.

    ``stage`` 0 is the shared part, 1 each teacher's own, from 2 on the rounds for those that have not reached it.
    """

    def __init__(self, fleet: Fleet, cfg: JobCfg):
        """Begin a training."""
        self.fleet, self.cfg = fleet, cfg
        self.stage, self.members = 0, list(range(cfg.num_teachers))
        self.score: Score | None = None
        self.cpu_seconds = 0.0
        env = fleet.make_env(1, cfg.seed, self.members)
        self.task: FleetRollout | QuadcopterPointCtrlEnv
        self.trainer: BpttTrainer | StackedPpo
        self.policies = initial_policies(env, cfg.num_teachers, cfg.hidden_dims, cfg.seed)
        self._begin_stage()

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.stage > 1 + self.cfg.max_rounds or not self.members

    @property
    def stage_name(self) -> str:
        """What a user reads beside the progress bar."""
        if self.stage < 2:
            return ("shared start", f"{len(self.members)} teachers")[self.stage]
        return f"round {self.stage - 1}: {len(self.members)} teachers"

    def _begin_stage(self) -> None:
        """Build trainer and rollout of a stage; without members or rounds left there is none."""
        cfg = self.cfg
        if self.stage == 0 and not cfg.shared_updates:
            self.stage = 1
        if self.finished:
            return
        more = self.stage >= 2
        updates = (cfg.shared_updates, cfg.updates, cfg.more_updates)[min(self.stage, 2)]
        policies = self.policies.select(self.members)
        envs = cfg.num_envs * (cfg.more_envs if more else 1)
        seed = cfg.seed + 1000 * self.stage
        env = self.fleet.make_env(envs, seed, self.members)
        if cfg.method == "ppo":
            self.task, self.trainer = env, StackedPpo(env, policies, StackedPpoCfg(updates=updates, seed=seed))
            return
        # The shared start is of the size of what follows it, and uses the same compiled step.
        steps = cfg.horizon * (updates if more else cfg.shared_updates + cfg.updates)
        compiled = steps >= cfg.compile_from
        if compiled and more:
            torch._dynamo.reset()  # a step of another size: else the compiler counts sizes, and at eight gives up
        self.task = FleetRollout(env, FleetRolloutCfg(motor_noise=cfg.motor_noise), compiled, seed)
        rate = 1e-3 if more else 2e-3
        bptt = BpttCfg(cfg.hidden_dims, cfg.horizon, updates, rate, shared=self.stage == 0)
        self.trainer = BpttTrainer(self.task, policies, bptt)

    def update(self) -> torch.Tensor:
        """Do one update; at the end of a stage measure, keep what is better, and begin the next one.

        Returns:
            Mean smooth reward per step of the policies in training.
        """
        begun = time.process_time()
        rewards = self.trainer.update()
        if self.trainer.finished:
            self._end_stage()
        self.cpu_seconds += time.process_time() - begun
        return rewards

    def _end_stage(self) -> None:
        trained = self.trainer.policies
        everyone = list(range(len(self.members)))
        if self.stage == 0:
            self.policies.put(self.members, trained, everyone)
        else:
            self._keep_better(trained)
            corrected = trained.select(everyone)
            episodes = min(OFFSET_EPISODES, self.cfg.num_episodes)
            remove_offset(self.fleet, corrected, episodes, self.cfg.seed + OFFSET_SEED, self.members)
            self._keep_better(corrected)
            self.members = self._unsatisfied()
        self.stage += 1
        self._begin_stage()

    def _keep_better(self, policies: PolicyStack) -> None:
        """Take those policies of a stack (one for each member) that return more than what there is."""
        score = measure(self.fleet, policies, self.cfg.num_episodes, self.cfg.seed + MEASURE_SEED, self.members)
        if self.score is None:
            self.policies.put(self.members, policies, list(range(len(self.members))))
            self.score = score
            return
        before = Score(*(row[self.members] for row in vars(self.score).values()))
        taken = score.better_than(before).nonzero()[:, 0].tolist()
        members = [self.members[i] for i in taken]
        self.policies.put(members, policies, taken)
        for row, new in zip(vars(self.score).values(), vars(score).values(), strict=True):
            row[members] = new[taken]

    def _unsatisfied(self) -> list[int]:
        assert self.score is not None
        poor = ~(self.score.mean_return >= self.cfg.min_return) | (self.score.terminated > self.cfg.max_terminated)
        return poor.nonzero()[:, 0].tolist()

    def failed(self) -> list[int]:
        """Number those whose return is below the threshold."""
        assert self.score is not None
        return (~(self.score.mean_return >= self.cfg.min_return)).nonzero()[:, 0].tolist()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that decides what happens next, as plain values and tensors."""
        score = None if self.score is None else {k: v.clone() for k, v in vars(self.score).items()}
        saved: dict[str, Any] = {
            "cfg": asdict(self.cfg),
            "vehicles": [file.read_text() for file in self.fleet.files[: self.cfg.num_teachers]],
            "stage": self.stage,
            "members": self.members,
            "score": score,
            "cpu_seconds": self.cpu_seconds,
            "policies": self.policies.state_dict(),
        }
        if not self.finished:
            saved |= {"trainer": self.trainer.state_dict(), "task": self.task.state_dict()}
        return saved

    @staticmethod
    def restore(fleet: Fleet, saved: dict[str, Any]) -> TeacherJob:
        """Go on exactly where :meth:`state_dict` was taken, with its settings."""
        cfg = JobCfg(**saved["cfg"])
        if saved["vehicles"] != [file.read_text() for file in fleet.files[: cfg.num_teachers]]:
            raise UserError("--resume: --vehicles are not those of the training that was saved; name the same folder")
        job = TeacherJob(fleet, cfg)
        job.stage, job.members, job.cpu_seconds = saved["stage"], saved["members"], saved["cpu_seconds"]
        job.score = None if saved["score"] is None else Score(**saved["score"])
        job.policies.load_state_dict(saved["policies"])
        if not job.finished:
            job._begin_stage()
            job.trainer.load_state_dict(saved["trainer"])
            job.task.load_state_dict(saved["task"])
        return job
