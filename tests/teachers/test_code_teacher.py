"""Teachers that are code, against the function itself, and what is refused of them."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from tensordict import TensorDict

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.errors import UserError
from foundation.core.registry import forget_typed, note_typed
from foundation.teachers.code import SURE, CodeTeacher, is_code

ENVS = 5
OBS = TensorDict(
    {"policy": torch.randn(ENVS, 3), "camera": torch.randint(0, 255, (ENVS, 1, 2, 2), dtype=torch.uint8)}, [ENVS]
)


def push(obs: torch.Tensor) -> torch.Tensor:
    return -2.0 * obs[:, :2]


def by_groups(obs: TensorDict) -> torch.Tensor:
    assert obs["camera"].dtype == torch.uint8 and obs["camera"].shape[1:] == (1, 2, 2)
    return obs["policy"][:, :2] + obs["camera"].flatten(1)[:, :2]


def side(obs: torch.Tensor) -> torch.Tensor:
    return (obs[:, 0] > 0).long()


def values(obs: torch.Tensor) -> torch.Tensor:
    return torch.stack([obs[:, 0], -obs[:, 0]], dim=-1)


class Integral:
    """Returns the sum of the first column since the episode's start, twice."""

    state_size = 1

    def __call__(self, obs: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        state = state + obs[:, :1]
        return state.expand(-1, 2), state


@pytest.fixture
def module():
    """A module that the user has typed."""
    made = ModuleType("controllers_of_a_test")
    sys.modules[made.__name__] = made
    note_typed(["controllers_of_a_test:anything"])
    for thing in (push, by_groups, side, values, Integral):
        setattr(made, thing.__name__, thing)
    yield made
    del sys.modules[made.__name__]
    forget_typed()


def teacher(name: str, actions: int = 2, choices=None, groups=("policy",), outputs=None) -> CodeTeacher:
    made = CodeTeacher(f"controllers_of_a_test:{name}", outputs=outputs)
    made.bind(OBS, groups, None, actions, choices)
    return made


def test_a_name_is_told_from_a_path(tmp_path, monkeypatch):
    """``pkg.module:function`` is code unless there is a file of that name; paths and sets never are."""
    monkeypatch.chdir(tmp_path)
    assert is_code("pkg.module:function") and is_code(["m:f"])
    for path in (None, "model.pt", "runs/a:b.pt", "a.pt,b.pt", ["m:f", "m:g"], "cuda:0"):
        assert not is_code(path)
    (tmp_path / "m:f").touch()
    assert not is_code("m:f")


def test_actions_are_those_of_the_function(module):
    """A function of a tensor gets the groups, one of a TensorDict gets them by name, with their shapes and types."""
    assert torch.equal(teacher("push").act(OBS), push(OBS["policy"]))
    both = teacher("by_groups", groups=("policy", "camera"))
    assert torch.allclose(both.act(OBS), by_groups(OBS))
    assert both.num_obs == 7 and both.describe()["obs_groups"] == ["policy", "camera"]


def test_choices_become_logits(module):
    """An index is a sure choice; scores that the user names are Q-values, whose best acts."""
    output = teacher("side", 1, (2,)).output(OBS["policy"])
    index = side(OBS["policy"])
    assert torch.equal(output.mean.flatten(), index.float())
    probability = output.logits.softmax(-1)[torch.arange(ENVS), index]
    assert torch.allclose(probability, torch.ones(ENVS), atol=2 * torch.tensor(-SURE).exp().item())
    scored = teacher("values", 1, (2,), outputs="q_values").output(OBS["policy"])
    assert torch.equal(scored.logits, values(OBS["policy"]))
    assert torch.equal(scored.mean.flatten(), (OBS["policy"][:, 0] < 0).float())


def test_memory_is_passed_and_reset(module):
    """The state is carried by the caller: a sequence gives the running sum of each episode, steps give the same."""
    made = teacher("Integral")
    obs = torch.randn(6, ENVS, 3)
    resets = torch.zeros(6, ENVS, dtype=torch.bool)
    resets[0] = True
    resets[3, 1] = True
    expected = obs[..., :1].cumsum(0)
    expected[3:, 1] -= expected[2, 1].clone()
    output, _ = made.sequence(obs, None, resets)
    assert torch.allclose(output.mean, expected.expand(-1, -1, 2), atol=1e-6)
    for step in range(6):
        made.reset(resets[step])
        assert torch.allclose(made.act(obs[step]), output.mean[step], atol=1e-6)


@pytest.mark.parametrize(
    ("returns", "says"),
    [
        (lambda obs: [1.0], r"must return actions as a tensor, got list"),
        (lambda obs: obs[:, 0], r"must return actions of shape \(5, 2\), got \(5,\)"),
        (lambda obs: obs[:, :2] / 0.0, r"actions that are NaN or infinite"),
        (lambda obs: obs[:, 9], r"failed: IndexError: "),
        (lambda obs: torch.zeros(5, 2, device="meta"), r"actions on meta: they must be on cpu"),
    ],
)
def test_what_is_returned_is_checked_once(module, returns, says):
    """A shape, a device, NaN or an exception is one line that names the function."""
    module.wrong = returns
    with pytest.raises(UserError, match=says) as error:
        teacher("wrong")
    assert "controllers_of_a_test:wrong" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("returns", "says"),
    [
        (values, r"2 numbers for each environment .* distill\.teacher\.outputs=q_values or logits"),
        (lambda obs: torch.full((ENVS, 1), 2.0), r"integers from 0 to 1, got 2 to 2"),
        (lambda obs: torch.full((ENVS,), 0.5), r"integers from 0 to 1, got 0\.5"),
    ],
)
def test_choices_are_checked(module, returns, says):
    """Scores without a meaning and indices that are none are refused."""
    module.wrong = returns
    with pytest.raises(UserError, match=says):
        teacher("wrong", 1, (2,))


def test_what_a_file_names_is_not_imported(tmp_path, monkeypatch):
    """A module that only a run's folder names is refused, with what to type; what was typed is imported."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "untyped_controller.py").write_text("raise SystemExit('it ran')\n")
    forget_typed()
    with pytest.raises(UserError, match=r"give --teacher_checkpoint untyped_controller:act or --import"):
        CodeTeacher("untyped_controller:act")


def test_settings_of_a_checkpoint_are_refused(module):
    """An activation says nothing about code, and Q-values cannot be had of choices."""
    from foundation.cli.load_teachers import load_teacher

    cfg = DistillationCfg(device="cpu")
    cfg.teacher.checkpoint = "controllers_of_a_test:push"
    assert isinstance(load_teacher(cfg), CodeTeacher)
    cfg.teacher.activation = "relu"
    with pytest.raises(UserError, match=r"distill\.teacher\.activation has no effect on a teacher that is code"):
        load_teacher(cfg)
