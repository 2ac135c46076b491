"""Augmentation by a mirror symmetry of the task: each minibatch as it is, and mirrored with its labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NoReturn

import torch

from foundation.core.errors import UserError
from foundation.core.registry import resolve_attribute
from foundation.core.text import one_line
from foundation.dataset.transition import Batch
from foundation.policies.output import PolicyOutput

MirrorFunction = Callable[[Mapping[str, torch.Tensor], torch.Tensor], tuple[Mapping[str, torch.Tensor], torch.Tensor]]
"""Takes observation groups by name, (num_samples, size) each, and actions, (num_samples, num_actions), of discrete
ones the index (num_samples, 1); returns both mirrored."""
_WITHOUT_IMAGE = {"features": "feature", "saliency": "attention"}
"""Targets that have no mirror image, and the loss that reads each."""


class Mirror:
    """Mirrors minibatches.

    Args:
        name: ``"pkg.module:function"``.
        groups: The student's observation groups in order, with their sizes.
        teacher: The teacher's outputs of some samples: what there is to mirror.

    Raises:
        UserError: If the function changes shapes, or is no mirror.
    """

    def __init__(self, name: str, groups: Mapping[str, int], teacher: PolicyOutput):
        self.name = name
        self.groups = dict(groups)
        self.function: MirrorFunction = resolve_attribute(name, "augment", typed_as="distill.augment=")
        device = teacher.mean.device
        choices = None if teacher.logits is None else teacher.logits.shape[-1]
        self._choices: torch.Tensor | None = None
        self._actions = torch.eye(teacher.mean.shape[-1], device=device)
        if choices is None:
            self._actions = self._checked(self._actions)
            self._check_signs()
        else:
            indices = torch.arange(choices, dtype=torch.float32, device=device).unsqueeze(-1)
            self._choices = self._checked(indices).squeeze(-1).long()
            if sorted(self._choices.tolist()) != list(range(choices)):
                self._fail(f"maps the {choices} choices to {self._choices.tolist()}: each must occur once")

    def check_losses(self, fields: set[str]) -> None:
        """Refuse losses on what has no mirror image.

        Args:
            fields: The teacher's outputs that the losses read.
        """
        for field, loss in _WITHOUT_IMAGE.items():
            if field in fields:
                self._fail(f"cannot mirror what loss '{loss}' reads: leave one of them out")

    def _fail(self, what: str) -> NoReturn:
        raise UserError(f"distill.augment={self.name} {what}.")

    def _checked(self, actions: torch.Tensor) -> torch.Tensor:
        """Mirror actions beside random observations, and check shapes and that twice is nothing."""
        generator = torch.Generator().manual_seed(0)
        obs = {
            name: torch.randn(len(actions), size, generator=generator).to(actions.device)
            for name, size in self.groups.items()
        }
        mirrored, there = self._call(obs, actions)
        again, back = self._call(mirrored, there)
        twice = {name: again[name] for name in obs} | {"the actions": back}
        for name, given in (obs | {"the actions": actions}).items():
            if not torch.allclose(twice[name], given, atol=1e-5):
                self._fail(f"is no mirror: done twice it changes {name}")
        return there

    def _call(
        self, obs: Mapping[str, torch.Tensor], actions: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        try:
            mirrored, there = self.function(obs, actions)
            mirrored = dict(mirrored)
        except UserError:
            raise
        except (TypeError, ValueError, LookupError, RuntimeError) as error:
            self._fail(f"fails: {one_line(error)}")
        for name, given in obs.items():
            found = mirrored.get(name)
            if not isinstance(found, torch.Tensor) or found.shape != given.shape:
                shape = tuple(found.shape) if isinstance(found, torch.Tensor) else "nothing"
                self._fail(f"changes shapes: group '{name}' was {tuple(given.shape)} and is {shape}")
        if not isinstance(there, torch.Tensor) or there.shape != actions.shape:
            shape = tuple(there.shape) if isinstance(there, torch.Tensor) else "nothing"
            self._fail(f"changes shapes: the actions were {tuple(actions.shape)} and are {shape}")
        return mirrored, there

    def _check_signs(self) -> None:
        sizes = self._actions.abs()
        ones = torch.ones_like(sizes[0])
        whole = torch.equal(sizes, sizes.round())
        if not (whole and torch.equal(sizes.sum(0), ones) and torch.equal(sizes.sum(1), ones)):
            self._fail("must exchange actions and change their signs, nothing else")

    @torch.no_grad()
    def doubled(self, batch: Batch) -> Batch:
        """Return a minibatch with its mirror image beside it.

        Args:
            batch: Flat, or sequences whose memory begins with zeros.
        """
        dim = 0 if batch.resets is None else 1

        def twice(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else torch.cat([tensor, tensor], dim=dim)

        obs, mean = self._mirrored(batch.obs, batch.targets.mean)
        image = self._image(batch.targets, mean)
        fields = zip(batch.targets, image, strict=True)
        targets = PolicyOutput(*(None if one is None else torch.cat([one, other], dim=dim) for one, other in fields))  # pyright: ignore[reportArgumentType]
        whole = torch.cat([batch.obs, obs], dim=dim)
        return batch._replace(obs=whole, targets=targets, weights=twice(batch.weights), resets=twice(batch.resets))

    def _mirrored(self, obs: torch.Tensor, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mirror observations, side by side, and actions. Shapes: (..., num_obs) and (..., num_actions)."""
        flat = obs.flatten(0, -2)
        parts = dict(zip(self.groups, flat.split(list(self.groups.values()), dim=-1), strict=True))
        mirrored, there = self._call(parts, actions.flatten(0, -2))
        together = torch.cat([mirrored[name] for name in self.groups], dim=-1)
        return together.view_as(obs), there.view_as(actions)

    def _image(self, targets: PolicyOutput, mean: torch.Tensor) -> PolicyOutput:
        """Return the mirror image of the teacher's outputs, whose mean is known."""
        return targets._replace(
            mean=mean,
            std=self._unsigned(targets.std),
            logits=None if targets.logits is None else self._permuted(targets.logits),
            pre_tanh=self._of_squashed(targets.pre_tanh),
            concentration=self._of_beta(targets.concentration),
        )

    def _permuted(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits of the mirrored choices: what is its own inverse needs no inverse."""
        assert self._choices is not None
        return logits[..., self._choices]

    def _unsigned(self, std: torch.Tensor | None) -> torch.Tensor | None:
        return None if std is None else std @ self._actions.abs()

    def _of_squashed(self, pre_tanh: torch.Tensor | None) -> torch.Tensor | None:
        if pre_tanh is None:
            return None
        mean, std = pre_tanh.chunk(2, dim=-1)
        return torch.cat([mean @ self._actions, std @ self._actions.abs()], dim=-1)

    def _of_beta(self, concentration: torch.Tensor | None) -> torch.Tensor | None:
        """Exchange alpha and beta where the sign of an action changes."""
        if concentration is None:
            return None
        alpha, beta = concentration.chunk(2, dim=-1)
        kept, turned = self._actions.clamp_min(0.0), (-self._actions).clamp_min(0.0)
        return torch.cat([alpha @ kept + beta @ turned, beta @ kept + alpha @ turned], dim=-1)
