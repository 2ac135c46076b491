"""Federated distillation: sites that keep their transitions and share weights, or answers on public observations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from foundation.core.errors import UserError, suggest
from foundation.dataset.dataset import DistillationDataset
from foundation.learning.learner import Learner
from foundation.students.base import Student

Shared = Literal["weights", "answers"]


@dataclass
class Site:
    """A learner with transitions that no other site sees."""

    learner: Learner
    dataset: DistillationDataset
    """What it learns from."""
    share: float = 1.0
    """Its weight in every average, such as its number of transitions."""


class Federation:
    """Rounds of learning at each site and averaging over all.

    What leaves a site is its normaliser's moments (number, mean, variance of each observation), once, and in every
    round its student's weights (McMahan et al. 2017, algorithm 1), or the student's actions on public observations,
    whose averages all students are then fitted to (Lin et al. 2020). Optimisers' states stay where they are.

    Args:
        sites: Their students have the same architecture.
        shared: What is averaged.
        public: Observations that every site may see, for ``answers``. Shape: (num_steps, num_envs, num_obs).
        public_updates: Updates of a round towards the averaged answers.

    Raises:
        UserError: If there are no sites, or ``answers`` has no public observations.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        shared: Shared = "weights",
        public: torch.Tensor | None = None,
        public_updates: int = 50,
    ):
        if not sites:
            raise UserError("a federation must have at least one site")
        if shared not in get_args(Shared):
            raise UserError(f"Unknown shared '{shared}'. {suggest(shared, get_args(Shared))}")
        if shared == "answers" and public is None:
            raise UserError("answers are averaged on public observations: give some")
        self.sites = list(sites)
        self.shared = shared
        self.public = public
        self.public_updates = public_updates
        total = sum(site.share for site in self.sites)
        self.shares = [site.share / total for site in self.sites]
        self._begin()

    @torch.no_grad()
    def _begin(self) -> None:
        """Give all students the same weights and the moments of all sites' observations."""
        first = self.sites[0].learner
        moments = [self._moments(site) for site in self.sites]
        for site in self.sites:
            for own, theirs in zip(site.learner.policies, first.policies, strict=True):
                for parameter, source in zip(own.parameters(), theirs.parameters(), strict=True):
                    parameter.copy_(source)
            normalizer = site.learner.student.normalizer
            if not normalizer.mean.numel():
                continue
            normalizer.count.zero_()
            normalizer.mean.zero_()
            normalizer.var.fill_(normalizer.placeholder)
            for parts in moments:
                for number, mean, var in parts:
                    normalizer.merge(number, mean, var)
            if site.learner.average is not None:
                site.learner.average.normalizer.load_state_dict(normalizer.state_dict())

    @staticmethod
    def _moments(site: Site) -> list[tuple[int, torch.Tensor, torch.Tensor]]:
        student, dataset = site.learner.student, site.dataset
        chunks = [student.normalizer_inputs(dataset.chunk_obs(chunk)) for chunk in range(dataset.num_chunks)]
        return [student.normalizer.moments(torch.cat([chunk.reshape(-1, chunk.shape[-1]) for chunk in chunks]))]

    def round(self, number: int, new_transitions: Sequence[int]) -> list[float]:
        """Learn at every site, then share.

        Args:
            number: Of the round, counted from 0, for the schedules.
            new_transitions: Of each site, which its number of updates follows.

        Returns:
            Mean training loss of each site.
        """
        losses = [
            site.learner.learn(site.dataset, number_new, number).mean_loss
            for site, number_new in zip(self.sites, new_transitions, strict=True)
        ]
        if self.shared == "weights":
            self.average_weights()
        else:
            self.average_answers()
        return losses

    @torch.no_grad()
    def average_weights(self) -> None:
        """Replace every student's weights, and their running averages, by the weighted mean over the sites."""
        for policies in zip(*(site.learner.policies for site in self.sites), strict=True):
            for parameters in zip(*(policy.parameters() for policy in policies), strict=True):
                mean = torch.zeros_like(parameters[0])
                for parameter, share in zip(parameters, self.shares, strict=True):
                    mean.add_(parameter, alpha=share)
                for parameter in parameters:
                    parameter.copy_(mean)

    def average_answers(self) -> None:
        """Fit every student to the weighted mean of all students' actions on the public observations."""
        assert self.public is not None
        with torch.no_grad():
            answers = [_answers(site.learner.policy, self.public) for site in self.sites]
            mean = sum(share * answer for share, answer in zip(self.shares, answers, strict=True))
        assert isinstance(mean, torch.Tensor)
        for site in self.sites:
            learner = site.learner
            learner.student.train()
            for _ in range(self.public_updates):
                loss = (_answers(learner.student, self.public) - mean).square().mean()
                learner.precision.step(loss, learner.optimizer, learner.student, learner.cfg.optimizer.max_grad_norm)
                if learner.average is not None:
                    learner.update_average()
            learner.student.eval()

    @property
    def student(self) -> Student:
        """The student of the federation: the averaged one, or, of answers, the first site's."""
        return self.sites[0].learner.policy


def _answers(student: Student, public: torch.Tensor) -> torch.Tensor:
    """Return the actions of a student on public observations. Shape: (num_steps, num_envs, num_actions)."""
    return student.sequence(public, None, None)[0].mean
