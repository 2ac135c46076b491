"""``distill.teacher.run_as_is``: policies that no rule reads act as their own runtime does, over steps with resets."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from foundation.checkpoints.as_is import trial
from foundation.core.errors import UserError
from foundation.teachers import TeacherPolicyWrapper
from foundation.teachers.ensemble import TeacherEnsemble

STEPS, ENVS = 20, 4
OBS = torch.randn(STEPS, ENVS, 9, generator=torch.Generator().manual_seed(1))
DONES = torch.zeros(STEPS, ENVS, dtype=torch.bool)
DONES[3, 0] = DONES[8, 1] = DONES[8, 3] = DONES[14, 0] = DONES[15, 2] = True
BEGINS = torch.cat([torch.zeros(1, ENVS, dtype=torch.bool), DONES[:-1]])


def mlp(*sizes: int) -> nn.Sequential:
    """Return dense layers with ELU between them."""
    layers: list[nn.Module] = []
    for before, after in zip(sizes, sizes[1:], strict=False):  # noqa: RUF007
        layers += [nn.Linear(before, after), nn.ELU()]
    return nn.Sequential(*layers[:-1])


class Him(nn.Module):
    """HIM's export: the estimator reads a history, the actor the newest observation, a velocity and a latent."""

    def __init__(self) -> None:
        super().__init__()
        self.estimator, self.actor = mlp(9, 16, 7), mlp(3 + 7, 8, 2)

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        """Act."""
        parts = self.estimator(history)
        latent = nn.functional.normalize(parts[:, 3:], p=2.0, dim=-1)
        return self.actor(torch.cat([history[:, :3], parts[:, :3], latent], dim=-1))


class Scaled(nn.Module):
    """A wrapper that scales and clips around its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(9, 12, 3)
        self.register_buffer("mean", torch.randn(9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        return torch.clamp(0.25 * self.net((x - self.mean).clamp(-5.0, 5.0)), -0.1, 0.1)


class Inside(nn.Module):
    """An LSTM whose state lies in buffers of unusual names."""

    def __init__(self, layers: int = 1) -> None:
        super().__init__()
        self.core, self.policy = nn.LSTM(9, 6, layers), mlp(6, 8, 2)
        self.register_buffer("carry", torch.zeros(layers, 1, 6))
        self.register_buffer("cell", torch.zeros(layers, 1, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        out, (h, c) = self.core(x.unsqueeze(0), (self.carry, self.cell))
        self.carry[:] = h
        self.cell[:] = c
        return self.policy(out.squeeze(0))

    @torch.jit.export
    def reset(self) -> None:
        """Begin an episode."""
        self.carry[:] = 0.0
        self.cell[:] = 0.0


class DeepInside(Inside):
    """The same with two layers."""

    def __init__(self) -> None:
        super().__init__(2)


class Cell(nn.Module):
    """A GRU cell with its state in an attribute that is replaced, not written to."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRUCell(9, 5), nn.Linear(5, 2)
        self.register_buffer("h", torch.zeros(1, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        self.h = self.cell(x, self.h)
        return torch.tanh(self.head(self.h))


class History(nn.Module):
    """A wrapper that stacks the last observations in a buffer, and counts steps in another."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(27, 8, 2)
        self.register_buffer("past", torch.zeros(1, 3, 9))
        self.register_buffer("steps", torch.zeros(1, dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        self.past = torch.cat([self.past[:, 1:], x.unsqueeze(1)], dim=1)
        self.steps = self.steps + 1
        return self.net(self.past.flatten(1)) + 0.01 * self.steps.float().unsqueeze(-1)


class OneRow(nn.Module):
    """A policy of one environment: its observation has no dimension of rows, and it remembers its last action."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(11, 8, 2)
        self.register_buffer("last", torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        self.last = self.net(torch.cat([x, self.last]))
        return self.last


class OutsideGru(nn.Module):
    """State passed in and returned."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(9, 6, 2), nn.Linear(6, 2)

    def forward(self, obs: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Act."""
        out, hidden = self.rnn(obs.unsqueeze(0), hidden)
        return self.head(out.squeeze(0)), hidden


class OutsideLstm(nn.Module):
    """State passed in and returned, in two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.LSTM(9, 6), nn.Linear(6, 2)

    def forward(
        self, obs: torch.Tensor, h: torch.Tensor, c: torch.Tensor
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """Act."""
        out, (h, c) = self.rnn(obs.unsqueeze(0), (h, c))
        return self.head(out.squeeze(0)), (h, c)


class Timed(nn.Module):
    """Reads the step of the episode beside the observation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(10, 8, 2)

    def forward(self, obs: torch.Tensor, time_step: torch.Tensor) -> dict[str, torch.Tensor]:
        """Act."""
        return {"joint_pos": obs[:, :2], "actions": self.net(torch.cat([obs, 0.1 * time_step], dim=-1))}


class Adapted(nn.Module):
    """RMA's export: the newest observation and a history are two arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.actor = mlp(6, 8, 4), mlp(7, 8, 2)

    def forward(self, obs: torch.Tensor, obs_hist: torch.Tensor) -> torch.Tensor:
        """Act."""
        return self.actor(torch.cat([obs, self.encoder(obs_hist)], dim=-1))


class Everything(nn.Module):
    """Two arguments of observations, a counter between them, and the state of a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(9, 6), nn.Linear(7, 2)

    def forward(
        self, obs: torch.Tensor, time_step: torch.Tensor, command: torch.Tensor, hidden: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Act."""
        out, hidden = self.rnn(torch.cat([command, obs], dim=-1).unsqueeze(0), hidden)
        return self.head(torch.cat([out.squeeze(0), 0.1 * time_step], dim=-1)), hidden


class Own:
    """The archive itself, for one environment at a time."""

    def __init__(self, path: Path, module: nn.Module):
        self.path, self.outside = path, isinstance(module, OutsideGru | OutsideLstm | Everything)
        self.timed, self.row = isinstance(module, Timed | Everything), isinstance(module, OneRow)
        self.split = SPLIT.get(type(module), 9)
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        self.script = torch.jit.load(str(self.path)).eval()
        self.step, self.state = 0, []
        if self.outside:
            layers = sum(1 for name, _ in self.script.named_parameters() if "weight_hh" in name)
            lstm = any(v.shape[0] == 4 * v.shape[1] for n, v in self.script.named_parameters() if "weight_hh" in n)
            self.state = [torch.zeros(layers, 1, 6) for _ in range(2 if lstm else 1)]

    @torch.no_grad()
    def __call__(self, obs: torch.Tensor) -> torch.Tensor:
        given = (
            [obs] if self.row else [part for part in (obs[None, : self.split], obs[None, self.split :]) if len(part[0])]
        )
        if self.timed:
            given.insert(1, torch.full((1, 1), float(self.step)))
            self.step += 1
        answer = self.script(*given, *self.state)
        if self.outside:
            answer, after = answer
            self.state = list(after) if isinstance(after, tuple) else [after]
        if isinstance(answer, dict):
            answer = answer["actions"]
        return answer.reshape(-1).clone()


def rolled(runs: list[Any]) -> torch.Tensor:
    """Return what runtimes of one environment each answer. Shape: (STEPS, ENVS, num_actions)."""
    steps = []
    for step in range(STEPS):
        for env in range(ENVS):
            if BEGINS[step, env]:
                runs[env].reset()
        steps.append(torch.stack([torch.as_tensor(runs[env](OBS[step, env])) for env in range(ENVS)]))
    return torch.stack(steps)


def compare(teacher: TeacherPolicyWrapper, expected: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Assert that a teacher answers as expected, step by step and as one sequence."""
    for step in range(STEPS):
        assert (teacher.act(OBS[step]) - expected[step]).abs().max() <= tolerance, step
        teacher.reset(DONES[step])
    whole = teacher.sequence(OBS, None, BEGINS)[0].mean
    assert (whole - expected).abs().max() <= tolerance


def scripted(module: nn.Module, path: Path) -> Path:
    """Save a module as TorchScript."""
    torch.manual_seed(11)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.4)
    torch.jit.save(torch.jit.script(module.eval()), str(path))
    return path


SPLIT: dict[type, int] = {Adapted: 3, Everything: 4}
MODULES = {
    Him: (True, 0), Scaled: (True, 0), Inside: (True, 12), DeepInside: (True, 24), Cell: (True, 5),
    History: (True, 28), OneRow: (False, 2), OutsideGru: (True, 12), OutsideLstm: (True, 12), Timed: (True, 1),
    Adapted: (True, 0), Everything: (True, 7),
}  # fmt: skip
WITHOUT_SIZE = (History, OneRow)


@pytest.mark.parametrize("kind", MODULES)
def test_torchscript(kind, tmp_path, caplog):
    """Estimators, wrappers, memory inside and outside, counters and policies of one row act as the archive itself."""
    caplog.set_level("INFO")
    batched, state_size = MODULES[kind]
    module = kind()
    path = scripted(module, tmp_path / "policy.pt")
    sizes = [SPLIT[kind], 9 - SPLIT[kind]] if kind in SPLIT else None
    teacher = TeacherPolicyWrapper(path, run_as_is=True, num_obs=9 if kind in WITHOUT_SIZE else None, input_sizes=sizes)
    assert (teacher.num_obs, teacher.state_size, teacher.policy.batched) == (9, state_size, batched)
    assert teacher.num_parameters == sum(parameter.numel() for parameter in module.parameters())
    compare(teacher, rolled([Own(path, module) for _ in range(ENVS)]))
    lines = [record.getMessage() for record in caplog.records if "run as it is" in record.getMessage()]
    assert len(lines) == 1
    assert ("one environment after the other" in lines[0]) != batched
    assert ("no memory" in lines[0]) == (state_size == 0 or kind is Timed)


@pytest.mark.parametrize("kind", [Inside, Him])
def test_a_wrong_state_would_be_seen(kind, tmp_path):
    """The comparison can fail: without the resets, or with other observations, the actions are others."""
    module = kind()
    path = scripted(module, tmp_path / "policy.pt")
    expected = rolled([Own(path, module) for _ in range(ENVS)])
    given = TeacherPolicyWrapper(path, run_as_is=True).sequence(OBS if kind is Inside else OBS.flip(0))[0].mean
    assert (given - expected).abs().max() > 1e-3


def test_state_that_was_left_in_the_file_is_cleared(tmp_path):
    """An archive that was saved in the middle of an episode begins its episodes afresh where it has a reset."""
    module = torch.jit.script(Inside())
    module(torch.ones(1, 9))
    torch.jit.save(module, str(tmp_path / "policy.pt"))
    teacher = TeacherPolicyWrapper(tmp_path / "policy.pt", run_as_is=True)
    assert not teacher.initial_state(2).any()


class Memory(nn.Module):
    """An LSTM of another name than exporters give it, its state inside."""

    def __init__(self) -> None:
        super().__init__()
        self.memory_a, self.actor = nn.LSTM(9, 8), mlp(8, 8, 2)
        self.register_buffer("hidden_state", torch.zeros(1, 1, 8))
        self.register_buffer("cell_state", torch.zeros(1, 1, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        out, (hidden, cell) = self.memory_a(x.unsqueeze(0), (self.hidden_state, self.cell_state))
        self.hidden_state[:] = hidden
        self.cell_state[:] = cell
        return self.actor(out.squeeze(0))


@torch.no_grad()
def test_traced_lstm(tmp_path):
    """A traced LSTM checks no sizes: the right number of observations alone is found, and it acts as itself."""
    torch.manual_seed(3)
    module, path = Memory().eval(), tmp_path / "policy.pt"
    script = torch.jit.trace(module, torch.zeros(1, 9), check_trace=False)
    script.hidden_state.zero_()
    script.cell_state.zero_()
    torch.jit.save(script, str(path))
    teacher = TeacherPolicyWrapper(path, run_as_is=True)
    for step in range(STEPS):
        given = teacher.act(OBS[step])
        for env in range(ENVS):
            own = torch.jit.load(str(path))
            begin = max((past for past in range(step + 1) if BEGINS[past, env]), default=0)
            wanted = [own(OBS[past, env : env + 1]) for past in range(begin, step + 1)][-1]
            assert (given[env] - wanted[0]).abs().max() <= 1e-5
        teacher.reset(DONES[step])


class FirstActions(nn.Module):
    """A policy whose actions are the first of its last layer's numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = mlp(9, 8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        return self.actor(x)[:, :2]


class LastObservations(FirstActions):
    """A policy that leaves out what comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = mlp(6, 8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        return self.actor(x[:, 3:])


class Twice(FirstActions):
    """A policy that runs its layers on their own answer."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = mlp(9, 8, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        return self.actor(self.actor(x))


@pytest.mark.parametrize("way", [torch.jit.script, "trace", "fx"], ids=["script", "trace", "fx"])
@pytest.mark.parametrize(("kind", "says"), [(FirstActions, "a part"), (LastObservations, "a part"), (Twice, "once")])
def test_what_is_done_between_layers_is_not_lost(kind, says, way, tmp_path):
    """Numbers left out and layers run twice are not read as if the layers were all: the advice runs the archive."""
    module, path = kind().eval(), tmp_path / "policy.pt"
    given = torch.fx.symbolic_trace(module) if way == "fx" else module
    torch.jit.save(torch.jit.script(given) if way == torch.jit.script else torch.jit.trace(given, OBS[0]), str(path))
    with pytest.raises(UserError, match=f"{says}.*run_as_is=true"):
        TeacherPolicyWrapper(path)
    teacher = TeacherPolicyWrapper(path, run_as_is=True, num_obs=9)
    assert (teacher.act(OBS[0]) - module(OBS[0])).abs().max() <= 1e-5


def test_frozen_sequential(tmp_path):
    """Frozen layers leave nothing to read: one line, whose advice runs them."""
    module, path = mlp(9, 8, 2).eval(), tmp_path / "policy.pt"
    torch.jit.save(torch.jit.freeze(torch.jit.script(module)), str(path))
    with pytest.raises(UserError, match=r"frozen.*run_as_is=true"):
        TeacherPolicyWrapper(path)
    teacher = TeacherPolicyWrapper(path, run_as_is=True, num_obs=9)
    assert (teacher.act(OBS[0]) - module(OBS[0])).abs().max() <= 1e-5


def test_fx_graph(tmp_path):
    """A graph of torch.fx, whose class says nothing, acts as itself."""
    module, path = torch.fx.symbolic_trace(Scaled()), tmp_path / "policy.pt"
    torch.jit.save(torch.jit.trace(module.eval(), torch.zeros(2, 9)), str(path))
    compare(TeacherPolicyWrapper(path, run_as_is=True), rolled([Own(path, module) for _ in range(ENVS)]))


def test_traced_module(tmp_path):
    """A traced module acts as itself."""
    module = Him().eval()
    torch.jit.save(torch.jit.trace(module, torch.zeros(1, 9)), str(tmp_path / "policy.pt"))
    own = [Own(tmp_path / "policy.pt", module) for _ in range(ENVS)]
    compare(TeacherPolicyWrapper(tmp_path / "policy.pt", run_as_is=True), rolled(own))


class Draws(nn.Module):
    """Adds noise."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(9, 8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        return self.net(x) + torch.randn(x.shape[0], 2)


class Counts(nn.Module):
    """Remembers in a plain number, where it cannot be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.steps = mlp(9, 8, 2), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        self.steps += 1
        return self.net(x) + 0.1 * self.steps


class Sliced(nn.Module):
    """Runs with observations of more than one size."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(6, 9, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        return self.net(x[:, :6])


class Unknown(nn.Module):
    """Takes an argument that nobody can fill in."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(9, 8, 2)

    def forward(self, x: torch.Tensor, command: torch.Tensor) -> torch.Tensor:
        """Act."""
        return self.net(x) + command


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (Draws, "other actions for the same observations"), (Counts, "remembers where it cannot be seen"),
        (Sliced, r"distill\.teacher\.num_obs=N"), (History, r"distill\.teacher\.num_obs=N"),
        (Unknown, r"takes 'x', 'command', .*'distill\.teacher\.input_sizes=\[N_x,N_command\]'"),
        (Adapted, r"takes 'obs', 'obs_hist', .*input_sizes=\[N_obs,N_obs_hist\]"),
        (Everything, r"takes 'obs', 'command', 'hidden', .*input_sizes=\[N_obs,N_command\]"),
    ],
)  # fmt: skip
def test_what_cannot_be_run_is_one_line(module, says, tmp_path):
    """What draws its actions, hides its memory, leaves its size open or takes more than observations is refused."""
    path = scripted(module(), tmp_path / "policy.pt")
    with pytest.raises(UserError, match=says) as refusal:
        TeacherPolicyWrapper(path, run_as_is=True)
    assert "\n" not in str(refusal.value)


class Endless(nn.Module):
    """Never returns, whatever it observes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(9, 8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        step = 0
        while step >= 0:
            step = 1 - step
        return self.net(x)


class Looped(nn.Module):
    """Refines its action a number of times."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(9, 8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        action = self.net(x)
        for _ in range(3):
            action = action + 0.1 * torch.tanh(action)
        return action


def test_code_that_loops_for_ever_is_one_line(tmp_path, monkeypatch):
    """A policy whose code does not end is named after the time that its first steps may take."""
    monkeypatch.setattr(trial, "_SECONDS", 3.0)
    path = scripted(Endless(), tmp_path / "policy.pt")
    with pytest.raises(
        UserError, match=r"has not ended its first steps after 3 s in PyTorch.*one step per call"
    ) as refusal:
        TeacherPolicyWrapper(path, run_as_is=True)
    assert "\n" not in str(refusal.value)


def test_tuples_of_tuples_are_not_unpacked(tmp_path):
    """A tuple of two of the one before is refused by its type: sixty times over it would be 1e18 tensors in Python."""

    class Doubles(torch.jit.ScriptModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, 9))
            lines = "    y1 = (x, x)\n" + "".join(f"    y{i + 1} = (y{i}, y{i})\n" for i in range(1, 6))
            self.define(f"def forward(self, x):\n{lines}    return y6\n")

    Doubles().save(str(tmp_path / "policy.pt"))
    with pytest.raises(UserError, match="returns tuples in tuples in tuples"):
        TeacherPolicyWrapper(tmp_path / "policy.pt", run_as_is=True)


def test_code_that_its_compiler_does_not_end_with_is_one_line(tmp_path, monkeypatch):
    """Sixty such tuples where the code promises a tensor: PyTorch never ends writing the type that it complains of."""
    monkeypatch.setattr(trial, "_SECONDS", 3.0)
    sound = scripted(mlp(9, 8, 2), tmp_path / "sound.pt")
    lines = "    x = (input, input)\n" + "    x = (x, x)\n" * 60 + "    return x\n"
    with zipfile.ZipFile(sound) as archive, zipfile.ZipFile(tmp_path / "policy.pt", "w") as changed:
        for entry in archive.infolist():
            text = archive.read(entry)
            if b"class Sequential" in text:  # a file of its own, whose name depends on what was scripted before
                head, end, _ = text.partition(b" -> Tensor:\n")
                text = head + end + lines.encode()
            changed.writestr(entry.filename, text)
    with pytest.raises(UserError, match="has not ended its first steps after 3 s in PyTorch"):
        TeacherPolicyWrapper(tmp_path / "policy.pt", run_as_is=True)


def test_code_that_crashes_its_process_is_one_line(tmp_path, monkeypatch):
    """Long code is tried in another process: where that one dies of a signal, the signal is named.

    30,000 statements do that to PyTorch's compiler, but it takes half a minute; here the process kills itself.
    """
    monkeypatch.setattr(trial, "_PLAIN_CODE", 10)
    monkeypatch.setattr(trial, "_PROGRAM", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    path = scripted(Scaled(), tmp_path / "policy.pt")
    with pytest.raises(UserError, match=r"crashes PyTorch in its first steps \(SIGSEGV\).*Export the policy again"):
        TeacherPolicyWrapper(path, run_as_is=True)


def test_code_that_loops_and_ends_is_run(tmp_path):
    """A loop that ends is no reason to refuse a policy."""
    module = Looped()
    teacher = TeacherPolicyWrapper(scripted(module, tmp_path / "policy.pt"), run_as_is=True)
    compare(teacher, module(OBS).detach())


def test_a_size_that_is_given_is_checked(tmp_path):
    """A number of observations with which the file does not run is refused; without run_as_is it has no meaning."""
    path = scripted(Him(), tmp_path / "policy.pt")
    with pytest.raises(UserError, match="8 observations"):
        TeacherPolicyWrapper(path, run_as_is=True, num_obs=8)
    with pytest.raises(UserError, match="goes with"):
        TeacherPolicyWrapper(path, num_obs=9)
    with pytest.raises(UserError, match="true or false"):
        TeacherPolicyWrapper(path, run_as_is="yes")


def test_arguments_are_groups_of_the_environment(tmp_path):
    """Arguments whose names are observation groups are read from them; typed groups go before; a line says all."""
    path = scripted(Adapted(), tmp_path / "policy.pt")
    teacher = TeacherPolicyWrapper(path, run_as_is=True, input_sizes=[3, 6])
    assert teacher.obs_groups == ["obs", "obs_hist"] and "it reads obs 3 + obs_hist 6" in teacher.policy.how()
    own = torch.jit.load(str(path))(OBS[0, :, 6:], OBS[0, :, :6])
    groups = {"obs_hist": OBS[0, :, :6], "policy": OBS[0, :, :3], "obs": OBS[0, :, 6:]}
    assert torch.allclose(teacher.act(groups), own, atol=1e-6)
    typed = TeacherPolicyWrapper(path, run_as_is=True, input_sizes=[3, 6], obs_groups=["policy", "obs_hist"])
    own = torch.jit.load(str(path))(OBS[0, :, :3], OBS[0, :, :6])
    assert torch.allclose(typed.act(groups), own, atol=1e-6)
    with pytest.raises(UserError, match="observation group 'obs', which the environment does not have"):
        teacher.act({"policy": OBS[0]})


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"input_sizes": [4, 6]}, r"does not run with 4 \+ 6 observations"),
        ({"input_sizes": [9]}, r"takes 'obs', 'obs_hist', not 1 of"),
        ({"num_obs": 9}, r"takes 'obs', 'obs_hist', not 1 of"),
        ({"input_sizes": [3, 3, 3]}, r"takes 'obs', 'obs_hist', not 3 of"),
        ({"input_sizes": [3, 6], "num_obs": 8}, r"are 9 observations and distill\.teacher\.num_obs is 8"),
        ({"input_sizes": [3, "6"]}, r"input_sizes must be \[size,\.\.\.\]"),
        ({"input_sizes": []}, r"input_sizes must be \[size,\.\.\.\]"),
        ({"input_sizes": [3, 6], "run_as_is": False}, r"input_sizes goes with distill\.teacher\.run_as_is"),
    ],
)
def test_sizes_of_arguments_are_checked(given, says, tmp_path):
    """Sizes that do not go with the file, with each other or with being read are one line."""
    path = scripted(Adapted(), tmp_path / "policy.pt")
    with pytest.raises(UserError, match=says) as refusal:
        TeacherPolicyWrapper(path, **{"run_as_is": True, **given})
    assert "\n" not in str(refusal.value)
    assert TeacherPolicyWrapper(path, run_as_is=True, input_sizes=[3, 6], num_obs=9).num_obs == 9


def test_other_files_cannot_be_run(tmp_path):
    """A checkpoint is no program."""
    torch.save({"a": torch.zeros(1)}, tmp_path / "model.pt")
    with pytest.raises(UserError, match="neither TorchScript nor ONNX"):
        TeacherPolicyWrapper(tmp_path / "model.pt", run_as_is=True)


def test_several_teachers_that_are_run(tmp_path):
    """Teachers that are run as they are can be several, each for its own environments."""
    teachers = []
    for name in ("a", "b"):
        teachers.append(TeacherPolicyWrapper(scripted(Inside(), tmp_path / f"{name}.pt"), run_as_is=True))
        nn.init.normal_(torch.empty(1))
    ensemble = TeacherEnsemble(teachers, ["a", "b"])
    single = TeacherPolicyWrapper(tmp_path / "a.pt", run_as_is=True)
    assert torch.allclose(ensemble.step(OBS[0])[0].mean[::2], single.act(OBS[0])[::2], atol=1e-6)


# -- ONNX -----------------------------------------------------------------------------------------------------------

RNG = numpy.random.default_rng(3)
WEIGHTS = {
    "w": (0.4 * RNG.standard_normal((9, 5))).astype("f4"),
    "u": (0.4 * RNG.standard_normal((5, 5))).astype("f4"),
    "v": (0.4 * RNG.standard_normal((5, 2))).astype("f4"),
    "k": (0.1 * RNG.standard_normal((1, 5))).astype("f4"),
    "x": (0.4 * RNG.standard_normal((4, 5))).astype("f4"),
    "y": (0.4 * RNG.standard_normal((5, 5))).astype("f4"),
}


def node(kind: str, inputs: str, output: str, **attributes: Any) -> Any:
    """Return a node."""
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def graph(
    path: Path, nodes: list, inputs: dict[str, list], outputs: dict[str, list], types: dict | None = None
) -> Path:
    """Save a graph."""
    types = types or {}
    made = helper.make_graph(
        nodes,
        "policy",
        [helper.make_tensor_value_info(n, types.get(n, TensorProto.FLOAT), shape) for n, shape in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in WEIGHTS.items()],
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def recurrent(path: Path, before: str, after: str, batch: int | str = 1) -> Path:
    """Save ``h' = tanh(x W + h U)`` and actions ``h' V``."""
    nodes = [
        node("MatMul", "obs w", "a"), node("MatMul", f"{before} u", "b"), node("Add", "a b", "c"),
        node("Tanh", "c", after), node("MatMul", f"{after} v", "actions"),
    ]  # fmt: skip
    inputs, outputs = {"obs": [batch, 9], before: [batch, 5]}, {"actions": [batch, 2], after: [batch, 5]}
    return graph(path, nodes, inputs, outputs)


def recurrent_rule(obs: numpy.ndarray, h: numpy.ndarray, step: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return what :func:`recurrent` computes."""
    h = numpy.tanh(obs @ WEIGHTS["w"] + h @ WEIGHTS["u"])
    return h @ WEIGHTS["v"], h


def timed(path: Path, dtype: int = TensorProto.FLOAT, batch: int | str = 1) -> Path:
    """Save a policy like BeyondMimic's: the step of the episode is an input, and references are outputs."""
    nodes = [
        node("Cast", "time_step", "t", to=TensorProto.FLOAT), node("MatMul", "t k", "r"), node("MatMul", "obs w", "a"),
        node("Add", "a r", "c"), node("Tanh", "c", "joint_pos"), node("MatMul", "joint_pos v", "actions"),
    ]  # fmt: skip
    inputs, outputs = {"obs": [batch, 9], "time_step": [batch, 1]}, {"joint_pos": [batch, 5], "actions": [batch, 2]}
    return graph(path, nodes, inputs, outputs, {"time_step": dtype})


def timed_rule(obs: numpy.ndarray, h: numpy.ndarray, step: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return what :func:`timed` computes."""
    return numpy.tanh(obs @ WEIGHTS["w"] + step * WEIGHTS["k"][0]) @ WEIGHTS["v"], h


def two_inputs(path: Path, batch: int | str = "N") -> Path:
    """Save a policy of two observation inputs."""
    nodes = [
        node("MatMul", "proprio x", "a"), node("MatMul", "history y", "b"), node("Mul", "a b", "c"),
        node("MatMul", "c v", "output"),
    ]  # fmt: skip
    return graph(path, nodes, {"proprio": [batch, 4], "history": [batch, 5]}, {"output": [batch, 2]})


def two_rule(obs: numpy.ndarray, h: numpy.ndarray, step: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Return what :func:`two_inputs` computes."""
    return ((obs[:4] @ WEIGHTS["x"]) * (obs[4:] @ WEIGHTS["y"])) @ WEIGHTS["v"], h


class Rule:
    """A closed form for one environment."""

    def __init__(self, rule: Any):
        self.rule = rule
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        self.step, self.h = 0, numpy.zeros(5, "f4")

    def __call__(self, obs: torch.Tensor) -> torch.Tensor:
        action, self.h = self.rule(obs.numpy(), self.h, self.step)
        self.step += 1
        return torch.tensor(action)


GRAPHS = {
    "h_in": (lambda p: recurrent(p, "h_in", "h_out"), recurrent_rule, 5),
    "next_state": (lambda p: recurrent(p, "state", "next_state", "N"), recurrent_rule, 5),
    "h0_hn": (lambda p: recurrent(p, "h0", "hn"), recurrent_rule, 5),
    "unlike_names": (lambda p: recurrent(p, "carry", "memory", "N"), recurrent_rule, 5),
    "time_step": (timed, timed_rule, 1),
    "time_step_int": (lambda p: timed(p, TensorProto.INT64), timed_rule, 1),
    "time_step_open": (lambda p: timed(p, batch="N"), timed_rule, 1),
    "two_inputs": (two_inputs, two_rule, 0),
    "two_inputs_fixed": (lambda p: two_inputs(p, 1), two_rule, 0),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_onnx(name, tmp_path):
    """ONNX policies with memory, counters and several inputs act as their closed form, whatever the batch is."""
    write, rule, state_size = GRAPHS[name]
    teacher = TeacherPolicyWrapper(write(tmp_path / "policy.onnx"), run_as_is=True)
    assert (teacher.num_obs, teacher.num_actions, teacher.state_size) == (9, 2, state_size)
    assert teacher.policy.batched
    compare(teacher, rolled([Rule(rule) for _ in range(ENVS)]))


def test_onnx_whose_sizes_are_left_open(tmp_path):
    """Inputs of open sizes are asked for by name, taken when they are said, and refused where they do not fit."""
    nodes = [
        node("MatMul", "proprio x", "a"), node("MatMul", "history y", "b"), node("Mul", "a b", "c"),
        node("MatMul", "c v", "output"),
    ]  # fmt: skip
    shapes = {"proprio": ["N", "K"], "history": ["N", "L"]}
    path = graph(tmp_path / "policy.onnx", nodes, shapes, {"output": ["N", 2]})
    with pytest.raises(
        UserError, match=r"'proprio' \[-1\], 'history' \[-1\].*'distill\.teacher\.input_sizes=\[N1,N2\]'"
    ):
        TeacherPolicyWrapper(path, run_as_is=True)
    teacher = TeacherPolicyWrapper(path, run_as_is=True, input_sizes=[4, 5])
    assert teacher.obs_groups == ["proprio", "history"]
    compare(teacher, rolled([Rule(two_rule) for _ in range(ENVS)]))
    for sizes, says in (([5, 4], "cannot be run"), ([4, 3, 2], "3 sizes are given"), ([9], "input_sizes")):
        with pytest.raises(UserError, match=says):
            TeacherPolicyWrapper(path, run_as_is=True, input_sizes=sizes)
    fixed = two_inputs(tmp_path / "fixed.onnx")
    with pytest.raises(UserError, match="does not go with the sizes"):
        TeacherPolicyWrapper(fixed, run_as_is=True, input_sizes=[5, 4])


def test_onnx_that_takes_one_row(tmp_path):
    """A graph whose own shapes fix one environment is run for one after the other."""
    path = tmp_path / "policy.onnx"
    shape = numpy_helper.from_array(numpy.array([9]), "shape")
    nodes = [
        helper.make_node("Constant", [], ["s"], value=shape), node("Reshape", "obs s", "flat"),
        node("MatMul", "flat w", "a"), node("MatMul", "a v", "actions"),
    ]  # fmt: skip
    teacher = TeacherPolicyWrapper(graph(path, nodes, {"obs": [1, 9]}, {"actions": [2]}), run_as_is=True)
    assert not teacher.policy.batched
    expected = OBS.numpy() @ WEIGHTS["w"] @ WEIGHTS["v"]
    compare(teacher, torch.tensor(expected))


def test_exported_lstm(tmp_path):
    """PyTorch's own export of an LSTM with ``h_in`` and ``c_in`` acts as onnxruntime row by row."""

    class Exported(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(9, 6, 2), mlp(6, 5, 2)

        def forward(self, obs, h_in, c_in):
            out, (h, c) = self.rnn(obs.unsqueeze(0), (h_in, c_in))
            return self.head(out.squeeze(0)), h, c

    path = tmp_path / "policy.onnx"
    torch.onnx.export(
        Exported(),
        (torch.zeros(1, 9), torch.zeros(2, 1, 6), torch.zeros(2, 1, 6)),
        str(path),
        input_names=["obs", "h_in", "c_in"],
        output_names=["actions", "h_out", "c_out"],
        opset_version=17,
        dynamo=False,
    )

    class Session:
        def __init__(self) -> None:
            self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            self.reset()

        def reset(self) -> None:
            self.state = [numpy.zeros((2, 1, 6), "f4")] * 2

        def __call__(self, obs):
            feed = {"obs": obs[None].numpy(), "h_in": self.state[0], "c_in": self.state[1]}
            action, *self.state = self.session.run(None, feed)
            return torch.tensor(action[0])

    compare(TeacherPolicyWrapper(path, run_as_is=True), rolled([Session() for _ in range(ENVS)]))
    read = TeacherPolicyWrapper(path)  # this one is understood too: both ways agree
    compare(read, rolled([Session() for _ in range(ENVS)]))


def test_links_in_a_loop(tmp_path):
    """A link to itself is answered in one line."""
    (tmp_path / "policy.onnx").symlink_to("policy.onnx")
    with pytest.raises(UserError, match=r"policy\.onnx.*(loop|does not exist)"):
        TeacherPolicyWrapper(tmp_path / "policy.onnx")
