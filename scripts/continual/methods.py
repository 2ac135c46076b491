"""What is compared: how a policy that chases is taught to evade."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CHASE = "Isaac-Quadcopter-Chase-v0"
EVADE = "Isaac-Quadcopter-Evade-v0"
TASKS = {"chase": CHASE, "evade": EVADE}
"""In the order of the stages."""


@dataclass(frozen=True)
class Method:
    """One way of the second stage, as arguments of ``finetune.py``."""

    label: str
    """As tables and pictures have it."""
    distilled: bool = False
    """Starts from the student that was distilled from the chase's teacher, rather than from that teacher."""
    kl_coef: float = 0.0
    """Weight of the KL to the policy at the start, on the states of the new task. The start's copy has the same noise
    as the policy; a teacher of less noise would take away what exploration needs."""
    replay: float | None = None
    """Weight of the replay of the chase's transitions; None: they are not loaded."""
    ewc: float = 0.0
    """Weight of elastic weight consolidation."""
    trained: tuple[str, ...] = ()
    """Settings that say which part of the policy is trained; none: all of it."""
    compressed: bool = False
    """Not a training of its own: what plain PPO has reached, and the chase's teacher, are distilled into one student
    (progress and compress: Schwarz et al. 2018)."""

    def tokens(self, dataset: Path) -> list[str]:
        """Return the arguments of ``finetune.py`` that are this method's.

        Args:
            dataset: Folder of the chase's transitions.
        """
        tokens: list[str] = []
        if self.kl_coef:
            tokens += ["--kl_coef", str(self.kl_coef)]
        if self.replay is not None:
            tokens += [f"finetune.replay.dataset={dataset}", f"finetune.replay.coef={self.replay}"]
        if self.ewc:
            tokens.append(f"finetune.ewc.coef={self.ewc}")
        return [*tokens, *self.trained]


METHODS: dict[str, Method] = {
    "ppo": Method("PPO"),
    "distil_ppo": Method("distil, then PPO", distilled=True),
    "kl": Method("PPO + KL", kl_coef=0.03),
    "replay": Method("PPO + replay", replay=20.0),
    "kl_replay": Method("PPO + KL + replay", kl_coef=0.01, replay=20.0),
    "ewc": Method("PPO + EWC", replay=0.0, ewc=100.0),
    "adapters": Method("adapters", trained=("finetune.adapters.rank=8",)),
    "task_adapters": Method(
        "adapters of the new task", trained=("finetune.adapters.rank=8", "finetune.adapters.by_task=true")
    ),
    "head": Method("a head of the new task", trained=("finetune.heads.layers=0",)),
    "deep_head": Method("a head and a hidden layer of the new task", trained=("finetune.heads.layers=1",)),
    "all_layers": Method("a head and both hidden layers of the new task", trained=("finetune.heads.layers=2",)),
    "column": Method("a progressive column", trained=("finetune.progressive.init=copy",)),
    "compress": Method("PPO, then both distilled into one", compressed=True),
}
"""By the name that ``--methods`` takes."""
PLAIN = "ppo"
"""The method that a compressed student has its new task from."""


def joint_tokens(quick: bool) -> list[str]:
    """Return the arguments of ``distillation.py --multi_task`` for one student of both teachers."""
    size = ["--n_epochs", "2"] if quick else ["--n_epochs", "150"]
    student = ["distill.student.obs_groups=[policy]", "distill.student.hidden_dims=[128,128]"]
    return ["experiment=fast_adam", *student, *size]


def distil_tokens(teacher: Path, dataset: Path, hidden_dims: Sequence[int], seed: int) -> list[str]:
    """Return the arguments of ``distillation.py`` that compress the chase's teacher and save what it was taught on.

    Args:
        teacher: The chase's teacher.
        dataset: Folder for the transitions.
        hidden_dims: The student's layers: the teacher's own, so that starting points differ by the distillation alone.
        seed: Of the run.
    """
    dims = ",".join(map(str, hidden_dims))
    return [
        *("--task", CHASE, "--teacher_checkpoint", str(teacher), "--save_dataset", str(dataset), "--seed", str(seed)),
        *("experiment=fast_adam", "distill.student.obs_groups=[policy]", f"distill.student.hidden_dims=[{dims}]"),
    ]
