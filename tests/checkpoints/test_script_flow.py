"""TorchScript policies read by their layers: what their code does between the layers is never lost without a word."""

from __future__ import annotations

import linecache
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from rsl_rl.models import MLPModel, RNNModel
from tensordict import TensorDict
from torch import nn

from foundation.core.errors import UserError
from foundation.teachers import TeacherPolicyWrapper

STEPS, ENVS, OBS, ACTIONS = 20, 3, 8, 3
INPUTS = torch.randn(STEPS, ENVS, OBS, generator=torch.Generator().manual_seed(1))
DONES = torch.zeros(STEPS, ENVS, dtype=torch.bool)
DONES[4, 0] = DONES[9, 1] = DONES[11, 0] = DONES[16, 2] = True

SAME = {
    "plain": "return self.actor(x)",
    "a step of one": "return self.actor(x[:, ::1])",
    "copies": "return self.actor(x.detach().clone().contiguous())",
    "there and back": "return self.actor(x.unsqueeze(0).squeeze(0))",
    "a value beside it": "return self.actor(x), x",
}
"""Code that does what the layers do."""
OTHER = {
    "a step": ("return self.actor(x[:, ::2])", 4),
    "a step and a start": ("return self.actor(x[:, 1::3])", 3),
    "an end": ("return self.actor(x[..., :-1])", 7),
    "select": ("return self.actor(torch.stack([x.select(1, 0), x.select(1, 1)], 1))", 2),
    "an element": ("return self.actor(x[:, 3].unsqueeze(1))", 1),
    "narrow": ("return self.actor(x.narrow(1, 2, 4))", 4),
    "index_select": ("return self.actor(torch.index_select(x, 1, torch.tensor([3, 1, 0, 2])))", 4),
    "a list of columns": ("return self.actor(x[:, [3, 1, 0]])", 3),
    "flip": ("return self.actor(x.flip(1))", 8),
    "roll": ("return self.actor(torch.roll(x, 1, 1))", 8),
    "chunk": ("a, b = x.chunk(2, 1)\nreturn self.actor(b)", 4),
    "unbind": ("return self.actor(torch.stack(x.unbind(1)[:4], 1))", 4),
    "halves swapped": ("return self.actor(torch.cat([x[:, 4:], x[:, :4]], 1))", 8),
    "a transposition": ("return self.actor(x.view(-1, 2, 4).transpose(1, 2).reshape(-1, 8))", 8),
    "zeros": ("return self.actor(torch.zeros_like(x))", 8),
    "zeros written in": ("x = x.clone()\nx[:] = torch.zeros_like(x)\nreturn self.actor(x)", 8),
    "a column written in": ("x = x.clone()\nx[:, 0] = 0.0\nreturn self.actor(x)", 8),
    "actions written over": ("y = self.actor(x)\ny.copy_(torch.zeros_like(y))\nreturn y", 8),
    "actions cleared": ("y = self.actor(x)\ny.zero_()\nreturn y", 8),
    "integers": ("return self.actor(x.int().float())", 8),
    "half numbers": ("return self.actor(x.half().float())", 8),
    "scaled in place": ("return self.actor(x.clone().mul_(2.0))", 8),
    "clamped": ("return self.actor(x).clamp(-0.1, 0.1)", 8),
    "the first layer": ("return self.actor[0](x)", 8),
    "all but the last": ("return self.actor[1](self.actor[0](x))", 8),
    "without activation": ("return self.actor[2](self.actor[0](x))", 8),
    "an activation twice": ("return self.actor[2](self.actor[1](self.actor[1](self.actor[0](x))))", 8),
    "a residual": ("h = self.actor[0](x)\nreturn self.actor[2](self.actor[1](h) + h)", 8),
    "layers not used": ("y = self.actor(x)\nreturn x[:, 0:3]", 8),
    "the observation": ("y = self.actor(x)\nreturn x", 8),
    "some actions": ("return self.actor(x)[:, ::2]", 8),
    "a function": ("return torch.tanh(self.actor(x))", 8),
}
"""Code that does something else, and the size of the first layer."""


def policy(body: str, **parts: nn.Module | torch.Tensor) -> nn.Module:
    """Return a module of some parts whose ``forward`` has some code."""
    code = "def forward(self, x):\n    " + body.replace("\n", "\n    ") + "\n"
    name = f"<{code}>"
    linecache.cache[name] = len(code), None, code.splitlines(keepends=True), name  # scripting reads the source
    made: dict[str, Any] = {}
    exec(compile(code, name, "exec"), {"torch": torch}, made)
    module = type("Policy", (nn.Module,), made)()
    for key, part in parts.items():
        if isinstance(part, nn.Module):
            module.add_module(key, part)
        else:
            module.register_buffer(key, part)
    return module.eval()


def write(body: str, num_in: int, way: str, path: Path) -> Any:
    """Save a policy whose ``forward`` has some code, and return it as it runs."""
    torch.manual_seed(0)
    module = policy(body, actor=nn.Sequential(nn.Linear(num_in, 6), nn.ELU(), nn.Linear(6, ACTIONS)))
    script = torch.jit.script(module) if way == "scripted" else torch.jit.trace(module, INPUTS[0, :1])
    script.save(str(path))
    return script


@pytest.mark.parametrize("way", ["scripted", "traced"])
@pytest.mark.parametrize("name", SAME)
def test_code_that_only_runs_the_layers(name, way, tmp_path):
    """Moves that change no number are read, and the policy acts as its own runtime."""
    own = write(SAME[name], OBS, way, tmp_path / "policy.pt")
    teacher = TeacherPolicyWrapper(tmp_path / "policy.pt")
    for obs in INPUTS:
        expected = own(obs)
        expected = expected[0] if isinstance(expected, tuple) else expected
        assert (teacher.act(obs) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("way", ["scripted", "traced"])
@pytest.mark.parametrize("name", OTHER)
def test_code_that_does_more_is_refused(name, way, tmp_path):
    """Whatever else the code does is one line with the option that runs it; with it, it acts as its own runtime."""
    body, num_in = OTHER[name]
    own = write(body, num_in, way, tmp_path / "policy.pt")
    with pytest.raises(
        UserError, match=r"policy\.pt.*, which is not read\..*distill\.teacher\.run_as_is=true"
    ) as refusal:
        TeacherPolicyWrapper(tmp_path / "policy.pt")
    assert "\n" not in str(refusal.value)
    teacher = TeacherPolicyWrapper(tmp_path / "policy.pt", run_as_is=True, num_obs=OBS)
    assert (teacher.act(INPUTS[0]) - own(INPUTS[0]).reshape(ENVS, -1)).abs().max() <= 1e-5


class Linear(nn.Module):
    """A layer of one's own under a name of PyTorch's."""

    def __init__(self, num_in: int, num_out: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(num_out, num_in)), nn.Parameter(torch.zeros(num_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        return torch.nn.functional.linear(x, self.weight * 2.0, self.bias)


class Identity(nn.Module):
    """A module of one's own that is none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        return x.flip(1)


class EmpiricalNormalization(nn.Module):
    """A normaliser of one's own under RSL-RL's name."""

    def __init__(self) -> None:
        super().__init__()
        self.eps = 1e-2
        self.register_buffer("_mean", torch.ones(1, OBS))
        self.register_buffer("_var", torch.full((1, OBS), 4.0))
        self.register_buffer("_std", torch.full((1, OBS), 2.0))
        self.register_buffer("count", torch.tensor(9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        return ((x - self._mean) / (self._std + self.eps)).clamp(-1.0, 1.0)


class Around(nn.Module):
    """A policy with a normaliser before its layers."""

    def __init__(self, normalizer: nn.Module, actor: nn.Module) -> None:
        super().__init__()
        self.normalizer, self.actor = normalizer, actor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        return self.actor(self.normalizer(x))


def layers(first: nn.Module) -> nn.Sequential:
    """Return a few layers."""
    return nn.Sequential(first, nn.ELU(), nn.Linear(6, ACTIONS))


@pytest.mark.parametrize("way", ["scripted", "traced"])
@pytest.mark.parametrize(
    "module",
    [
        Around(nn.Identity(), layers(Linear(OBS, 6))),
        Around(Identity(), layers(nn.Linear(OBS, 6))),
        Around(nn.Identity(), nn.Sequential(Identity(), *layers(nn.Linear(OBS, 6)))),
        Around(EmpiricalNormalization(), layers(nn.Linear(OBS, 6))),
    ],
    ids=["layer", "step before", "step inside", "normaliser"],
)
def test_modules_of_ones_own_under_known_names(module, way, tmp_path):
    """A class is known by where it is from or by what its code does, not by its name alone."""
    path = tmp_path / "policy.pt"
    script = torch.jit.script(module.eval()) if way == "scripted" else torch.jit.trace(module.eval(), INPUTS[0])
    script.save(str(path))
    with pytest.raises(UserError, match=r"run_as_is=true"):
        TeacherPolicyWrapper(path)
    teacher = TeacherPolicyWrapper(path, run_as_is=True, num_obs=OBS)
    assert (teacher.act(INPUTS[0]) - module(INPUTS[0])).abs().max() <= 1e-5


RUN = "out, h = self.rnn(x.unsqueeze(0), self.hidden_state)\n"
ACT = "\nreturn self.actor(out.squeeze(0))"
MEMORY = {
    "kept": (RUN + "self.hidden_state[:] = h" + ACT, True),
    "set": (RUN + "self.hidden_state = h" + ACT, True),
    "forgotten": ("out, h = self.rnn(x.unsqueeze(0))\nself.hidden_state[:] = h" + ACT, False),
    "never written": (RUN + ACT.strip(), False),
    "written half": (RUN + "self.hidden_state[:] = 0.5 * h" + ACT, False),
    "of the first layer": (RUN + "self.hidden_state[:] = h\nreturn self.actor(h[0])", False),
    "of the step before": (RUN + "y = self.actor(self.hidden_state[0])\nself.hidden_state[:] = h\nreturn y", False),
}
"""Code of a policy of two GRU layers, and whether it is what its layers are."""


@pytest.mark.parametrize("name", MEMORY)
def test_where_the_memory_goes(name, tmp_path):
    """A memory that is passed on as exporters do is read; one that is not, or that acts itself, is refused."""
    torch.manual_seed(0)
    body, sound = MEMORY[name]

    actor = nn.Sequential(nn.Linear(5, 4), nn.ELU(), nn.Linear(4, ACTIONS))
    module = policy(body, rnn=nn.GRU(OBS, 5, 2), actor=actor, hidden_state=torch.zeros(2, 1, 5))
    torch.jit.script(module).save(str(tmp_path / "policy.pt"))
    if not sound:
        with pytest.raises(UserError, match=r"which is not read\..*run_as_is=true"):
            TeacherPolicyWrapper(tmp_path / "policy.pt")
        return
    compare(TeacherPolicyWrapper(tmp_path / "policy.pt"), tmp_path / "policy.pt")


def compare(teacher: TeacherPolicyWrapper, path: Path) -> None:
    """Assert that a teacher acts as the archive does for each environment alone, over steps with partial resets."""
    own = [torch.jit.load(str(path)) for _ in range(ENVS)]
    with torch.no_grad():
        for step, obs in enumerate(INPUTS):
            expected = torch.cat([run(obs[env : env + 1]).reshape(1, -1) for env, run in enumerate(own)])
            assert (teacher.act(obs) - expected).abs().max() <= 1e-5
            teacher.reset(DONES[step])
            own = [torch.jit.load(str(path)) if DONES[step, env] else run for env, run in enumerate(own)]


GAUSSIAN = {"class_name": "GaussianDistribution", "init_std": 1.0, "std_type": "scalar"}
DISTRIBUTIONS = {
    "gaussian": GAUSSIAN,
    "heteroscedastic": {"class_name": "HeteroscedasticGaussianDistribution", "init_std": 1.0, "std_type": "scalar"},
    "beta": {"class_name": "BetaDistribution", "action_range": [-2.0, 3.0]},
    "none": None,
}


@pytest.mark.parametrize("normalized", [False, True], ids=["raw", "normalized"])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("memory", [None, ("gru", 1), ("gru", 2), ("lstm", 1), ("lstm", 2)], ids=str)
def test_what_rsl_rl_exports(memory, distribution, normalized, tmp_path):
    """MLP, GRU and LSTM with each distribution, exported by the library itself: as its own runtime, with resets."""
    torch.manual_seed(2)
    obs = TensorDict({"policy": INPUTS[0]}, batch_size=[ENVS])
    given = (obs, {"actor": ["policy"]}, "actor", ACTIONS)
    options: dict[str, Any] = {"hidden_dims": [7, 6], "activation": "elu", "obs_normalization": normalized}
    options["distribution_cfg"] = DISTRIBUTIONS[distribution]
    if memory is None:
        model: Any = MLPModel(*given, **options)
    else:
        model = RNNModel(*given, **options, rnn_type=memory[0], rnn_hidden_dim=5, rnn_num_layers=memory[1])
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.0, 0.5)
    if normalized:
        model.update_normalization(TensorDict({"policy": INPUTS[1] * 3 + 1}, batch_size=[ENVS]))
    torch.jit.script(model.eval().as_jit()).save(str(tmp_path / "policy.pt"))
    compare(TeacherPolicyWrapper(tmp_path / "policy.pt"), tmp_path / "policy.pt")


DEEP = {
    "brackets": "(" * 5000 + "x" + ")" * 5000,
    "attributes": "x" + ".a" * 40_000,
    "signs": "-" * 40_000 + "x",
    "elements": "x" + "[0]" * 20_000,
    "zeros": "x\0",
}


@pytest.mark.parametrize("name", DEEP)
def test_code_that_is_nested_without_end(name, tmp_path):
    """Code is parsed, so that whatever no parser takes is one line."""
    write(SAME["plain"], OBS, "scripted", tmp_path / "sound.pt")
    with zipfile.ZipFile(tmp_path / "sound.pt") as sound, zipfile.ZipFile(tmp_path / "policy.pt", "w") as changed:
        for member in sound.namelist():
            content = sound.read(member)
            if member.endswith(".py") and b"(actor).forward(x, )" in content:
                content = content.replace(b"(actor).forward(x, )", DEEP[name].encode())
                assert DEEP[name].encode() in content
            changed.writestr(member, content)
    with pytest.raises(UserError, match=r"policy\.pt") as refusal:
        TeacherPolicyWrapper(tmp_path / "policy.pt")
    assert str(refusal.value).isprintable()


def test_modules_without_a_state(tmp_path):
    """A module that the pickle gives no attributes has none, and is refused in one line."""
    write(SAME["plain"], OBS, "scripted", tmp_path / "sound.pt")
    with zipfile.ZipFile(tmp_path / "sound.pt") as sound, zipfile.ZipFile(tmp_path / "policy.pt", "w") as changed:
        for member in sound.namelist():
            bare = b"\x80\x02c__torch__\nX\n)\x81."
            changed.writestr(member, bare if member.endswith("/data.pkl") else sound.read(member))
    with pytest.raises(UserError, match="it has no 'mlp'"):
        TeacherPolicyWrapper(tmp_path / "policy.pt")
