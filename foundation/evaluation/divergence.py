"""Distance of a student's actions from its teacher's, on the states that the student visits."""

from __future__ import annotations

import math

import torch
from tensordict import TensorDict

from foundation.core.distributed import ALONE, Ranks
from foundation.policies.actors import Policy
from foundation.policies.obs_groups import ObsSelector
from foundation.policies.output import PolicyOutput
from foundation.rollout.stepper import Observer


def js_divergence(p: PolicyOutput, q: PolicyOutput, num_samples: int = 16) -> torch.Tensor:
    """Estimate the Jensen-Shannon divergence of two diagonal Gaussians [nats], between 0 and ln 2.

    A mixture of Gaussians has no closed form: 0.5 E_p[ln p/m] + 0.5 E_q[ln q/m] with m = (p + q) / 2 is averaged over
    samples of all actions together, from a generator of its own, the same in every call.

    Args:
        p: Means and stds. Shape: (num_envs, num_actions).
        q: Means and stds. Shape: (num_envs, num_actions).
        num_samples: Samples per distribution.

    Returns:
        Shape: (num_envs,).
    """
    mean = p.mean
    generator = torch.Generator(mean.device).manual_seed(0)
    noise = torch.randn((num_samples, *mean.shape), generator=generator, device=mean.device).to(mean.dtype)
    total = torch.zeros(mean.shape[:-1], device=mean.device, dtype=mean.dtype)
    for own, other in ((p, q), (q, p)):
        assert own.std is not None
        samples = own.mean + own.std * noise
        log_own = _log_prob(samples, own)
        log_mixture = torch.logaddexp(log_own, _log_prob(samples, other)) - math.log(2.0)
        total = total + 0.5 * (log_own - log_mixture).mean(dim=0)
    return total.clamp(0.0, math.log(2.0))


def _log_prob(actions: torch.Tensor, output: PolicyOutput) -> torch.Tensor:
    assert output.std is not None
    standardised = (actions - output.mean) / output.std
    return (-0.5 * standardised.square() - output.std.log() - 0.5 * math.log(2.0 * math.pi)).sum(dim=-1)


class DivergenceProbe(Observer):
    """Compare student and teacher on every ``interval``-th step of an evaluation.

    Args:
        teacher: A teacher without memory; it labels the compared states.
        teacher_obs: Selects the teacher's observations.
        student: The policy that acts; one with memory gives no divergence, only an error.
        student_obs: Selects the student's observations.
        bound: Actions and labels are clipped to it before they are compared; None: they are not.
        interval: Env steps from one comparison to the next.
    """

    def __init__(
        self,
        teacher: Policy,
        teacher_obs: ObsSelector,
        student: Policy,
        student_obs: ObsSelector,
        bound: float | None,
        interval: int = 10,
    ):
        self.teacher = teacher
        self.teacher_obs = teacher_obs
        self.student = student
        self.student_obs = student_obs
        self.bound = bound
        self.interval = interval
        self._steps = 0
        self._squares: list[torch.Tensor] = []
        self._divergences: list[torch.Tensor] = []

    def before_step(self, obs: TensorDict, actions: torch.Tensor) -> None:
        """See :class:`Observer`."""
        self._steps += 1
        if (self._steps - 1) % self.interval:
            return
        label = self.teacher.step(self.teacher_obs(obs), None)[0]
        self._squares.append((self._clipped(actions) - self._clipped(label.mean)).square().mean())
        if label.std is not None and self.student.state_size == 0:
            student = self.student.step(self.student_obs(obs), None)[0]
            if student.std is not None and not _is_bounded(student):
                self._divergences.append(js_divergence(label, student).mean())

    def _clipped(self, actions: torch.Tensor) -> torch.Tensor:
        return actions if self.bound is None else actions.clamp(-self.bound, self.bound)

    def summary(self, ranks: Ranks = ALONE) -> dict[str, float]:
        """Return ``action_rmse`` and, for two distributions, ``js_divergence``; absent rather than zero otherwise.

        Args:
            ranks: The processes whose comparisons are averaged.
        """
        parts = ranks.gather([self._squares, self._divergences])
        squares, divergences = ([value for part in parts for value in part[which]] for which in (0, 1))
        out: dict[str, float] = {}
        if squares:
            out["action_rmse"] = float(torch.stack(squares).mean().sqrt())
        if divergences:
            out["js_divergence"] = float(torch.stack(divergences).mean())
        return out


def _is_bounded(output: PolicyOutput) -> bool:
    """Whether a distribution is no Gaussian, so that the divergence of Gaussians does not apply."""
    return output.pre_tanh is not None or output.concentration is not None
