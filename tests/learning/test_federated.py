"""Federated distillation: what is averaged, and what stays at the sites."""

from __future__ import annotations

import pytest
import torch
from linear_teacher import GAIN, filled

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.errors import UserError
from foundation.learning.federated import Federation, Site
from foundation.learning.learner import Learner
from foundation.students import StudentPolicy


def site(seed: int, share: float = 1.0, axis: int | None = None) -> Site:
    """A site with a student of its own; with ``axis``, only that observation varies in its data."""
    torch.manual_seed(seed)
    cfg = DistillationCfg(batch_size=16, learning_rate=1e-2, n_epochs=40)
    cfg.optimizer.updates_per_epoch = 10
    dataset = filled(seed=seed)
    if axis is not None:
        obs = dataset.column("obs")
        hidden = [column for column in range(3) if column != axis]
        obs[..., hidden] *= 0.01
        dataset.column("mean")[:] = obs @ GAIN
    learner = Learner(StudentPolicy(3, 2, hidden_dims=(16,)), cfg, 1)
    learner.fit_normalizer_to(map(dataset.chunk_obs, range(dataset.num_chunks)))
    return Site(learner, dataset, share)


def vector(learner: Learner) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(learner.student.parameters()).detach()


def error(learner: Learner) -> float:
    """Mean squared error where all observations vary, which no site of one axis has seen."""
    obs = torch.randn(512, 3, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return float((learner.policy(obs) - obs @ GAIN).square().mean())


def test_weights_are_averaged_by_the_shares():
    """After a round every student has the weighted mean of what each site has learned alone, computed by hand."""
    federation = Federation([site(0, 1.0), site(1, 3.0)])
    first, second = federation.sites
    assert torch.equal(vector(first.learner), vector(second.learner))
    seen: list[torch.Tensor] = []
    average = federation.average_weights
    federation.average_weights = lambda: (seen.extend(vector(one.learner) for one in federation.sites), average())[1]
    federation.round(0, [256, 256])
    assert not torch.equal(seen[0], seen[1])
    torch.testing.assert_close(vector(first.learner), 0.25 * seen[0] + 0.75 * seen[1])
    assert torch.equal(vector(first.learner), vector(second.learner))


def test_normalisers_are_those_of_all_data():
    """Mean and variance of both sites' observations in one tensor are the oracle."""
    sites = [site(0, axis=0), site(1, axis=1)]
    federation = Federation(sites)
    obs = torch.cat([one.dataset.chunk_obs(chunk) for one in sites for chunk in range(one.dataset.num_chunks)])
    for one in federation.sites:
        normalizer = one.learner.student.normalizer
        torch.testing.assert_close(normalizer.mean, obs.mean(0), atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(normalizer.var, obs.var(0, correction=0), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shared", ["weights", "answers"])
def test_a_federation_knows_what_no_site_has_seen(shared):
    """Sites that each see one axis vary: together the students are better on all axes than each of them alone."""
    public = torch.randn(4, 16, 3, generator=torch.Generator().manual_seed(5))
    alone = [Federation([site(seed, axis=seed)]) for seed in range(3)]
    together = Federation([site(seed, axis=seed) for seed in range(3)], shared, public)
    for number in range(15):
        for one in alone:
            one.round(number, [256])
        together.round(number, [256] * 3)
    assert error(together.sites[0].learner) < min(error(one.sites[0].learner) for one in alone)


def test_answers_need_public_observations():
    """One line, before anything is learned."""
    with pytest.raises(UserError, match="public observations"):
        Federation([site(0)], "answers")
    with pytest.raises(UserError, match="weights"):
        Federation([site(0)], "wieghts")  # type: ignore[arg-type]
