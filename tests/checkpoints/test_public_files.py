"""Files of the kinds that public repositories hold: read, and equal to their own runtime over steps with resets."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from small_teacher import write_teacher
from torch import nn

from foundation.core.errors import UserError
from foundation.core.files import load_checkpoint
from foundation.dataset.disk.reader import SavedDataset
from foundation.teachers import TeacherPolicyWrapper
from foundation.teachers.manifest import FORMAT, find_teachers

STEPS, ENVS = 20, 3
RNG = numpy.random.default_rng(5)


def dones() -> torch.Tensor:
    """Return partial resets: every environment ends at least once, never all together. Shape: (STEPS, ENVS)."""
    ended = torch.zeros(STEPS, ENVS, dtype=torch.bool)
    ended[4, 0] = ended[9, 1] = ended[11, 0] = ended[16, 2] = True
    return ended


def save_script(module: nn.Module, path: Path, traced_with: torch.Tensor | None = None) -> Path:
    """Save a module as TorchScript."""
    script = torch.jit.script(module.eval()) if traced_with is None else torch.jit.trace(module.eval(), traced_with)
    torch.jit.save(script, str(path))
    return path


def assert_as_runtime(path: Path, num_obs: int, memory: bool = False, **overrides: Any) -> TeacherPolicyWrapper:
    """Assert that a teacher acts as the archive itself, run for one environment at a time, over steps with resets."""
    teacher = TeacherPolicyWrapper(path, **overrides)
    assert teacher.num_obs == num_obs
    own = [torch.jit.load(str(path)).eval() for _ in range(ENVS)]
    obs = torch.randn(STEPS, ENVS, num_obs, generator=torch.Generator().manual_seed(1))
    resets = torch.cat([torch.zeros(1, ENVS, dtype=torch.bool), dones()[:-1]])
    expected = torch.zeros(STEPS, ENVS, teacher.num_actions)
    with torch.no_grad():
        for step in range(STEPS):
            for env in range(ENVS):
                if memory and resets[step, env]:
                    own[env] = torch.jit.load(str(path)).eval()
                expected[step, env] = own[env](obs[step, env : env + 1].clone())[0]
            assert (teacher.act(obs[step]) - expected[step]).abs().max() <= 1e-5
            teacher.reset(dones()[step])
    whole = teacher.sequence(obs, None, resets)[0].mean
    assert (whole - expected).abs().max() <= 1e-5
    return teacher


# -- TorchScript ----------------------------------------------------------------------------------------------------


class WithMemory(nn.Module):
    """What legged_gym's exporters write: recurrent layers named ``memory``, their state inside."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], num_obs: int, size: int, layers: int, hidden: list[int]):
        super().__init__()
        self.memory = kind(num_obs, size, layers)
        sizes = [size, *hidden]
        parts: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            parts += [nn.Linear(before, after), nn.ELU()]
        self.actor = nn.Sequential(*parts, nn.Linear(sizes[-1], 2))
        self.register_buffer("hidden_state", torch.zeros(layers, 1, size))


class LstmExport(WithMemory):
    """An LSTM's export."""

    def __init__(self, *sizes: Any):
        super().__init__(nn.LSTM, *sizes)
        self.register_buffer("cell_state", torch.zeros_like(self.hidden_state))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        out, (h, c) = self.memory(x.unsqueeze(0), (self.hidden_state, self.cell_state))
        self.hidden_state[:] = h
        self.cell_state[:] = c
        return self.actor(out.squeeze(0))


class GruExport(WithMemory):
    """A GRU's export."""

    def __init__(self, *sizes: Any):
        super().__init__(nn.GRU, *sizes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        out, h = self.memory(x.unsqueeze(0), self.hidden_state)
        self.hidden_state[:] = h
        return self.actor(out.squeeze(0))


@pytest.mark.parametrize("kind", [LstmExport, GruExport])
@pytest.mark.parametrize(
    "sizes", [(5, 8, 1, [8]), (47, 64, 1, [32]), (9, 6, 2, [7, 5]), (3, 4, 3, []), (41, 16, 1, [16])]
)
def test_recurrent_layers_named_memory(kind, sizes, tmp_path):
    """legged_gym's exported LSTM and GRU act as the archive itself, layer counts and sizes of any kind."""
    torch.manual_seed(3)
    teacher = assert_as_runtime(save_script(kind(*sizes), tmp_path / "motion.pt"), sizes[0], memory=True)
    assert teacher.state_size == sizes[1] * sizes[2] * (2 if kind is LstmExport else 1)


BARE = {
    "elu": [nn.Linear(5, 8), nn.ELU(), nn.Linear(8, 2)],
    "deep_tanh": [nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 2)],
    "ends_in_tanh": [nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2), nn.Tanh()],
    "all_tanh": [nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 2), nn.Tanh()],
    "linear": [nn.Linear(5, 2)],
    "no_activation": [nn.Linear(5, 8), nn.Linear(8, 2)],
    "without_bias": [nn.Linear(5, 8, bias=False), nn.SiLU(), nn.Linear(8, 2, bias=False)],
    "nested": [nn.Sequential(nn.Linear(5, 8), nn.ELU()), nn.Sequential(nn.Linear(8, 2))],
    "dropout": [nn.Linear(5, 8), nn.ELU(), nn.Dropout(0.5), nn.Linear(8, 2), nn.Identity()],
    "wide": [nn.Linear(48, 256), nn.Mish(), nn.Linear(256, 12)],
    "twelve": [layer for _ in range(6) for layer in (nn.Linear(5, 5), nn.ELU())] + [nn.Linear(5, 2)],
}


@pytest.mark.parametrize("traced", [False, True], ids=["scripted", "traced"])
@pytest.mark.parametrize("name", BARE)
def test_bare_sequential(name, traced, tmp_path):
    """An archive that is nothing but a Sequential acts as itself, whatever its layers and what it ends in."""
    module = nn.Sequential(*BARE[name])
    num_obs = next(layer for layer in module.modules() if isinstance(layer, nn.Linear)).in_features
    path = save_script(module, tmp_path / "policy.pt", torch.zeros(1, num_obs) if traced else None)
    assert_as_runtime(path, num_obs)


@pytest.mark.parametrize("traced", [False, True], ids=["scripted", "traced"])
@pytest.mark.parametrize(
    "layer",
    [nn.LeakyReLU(0.2), nn.ELU(0.5), nn.CELU(2.0), nn.Softplus(2.0), nn.GELU("tanh"), nn.LayerNorm(8), nn.PReLU()],
    ids=lambda layer: type(layer).__name__,
)
def test_layers_with_constants_of_their_own_are_refused(layer, traced, tmp_path):
    """A constant that lies in the archive's code alone is never taken for PyTorch's default in silence."""
    module = nn.Sequential(nn.Linear(5, 8), layer, nn.Linear(8, 2))
    path = save_script(module, tmp_path / "policy.pt", torch.zeros(1, 5) if traced else None)
    with pytest.raises(UserError, match=r"distill\.teacher\.run_as_is=true"):
        TeacherPolicyWrapper(path)


class Wrapper(nn.Module):
    """A policy whose forward does more than its layers say."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(5, 8), nn.ELU(), nn.Linear(8, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        return torch.clamp(self.actor(x) * 0.25, -1.0, 1.0)


def scaled(x: torch.Tensor) -> torch.Tensor:
    """Scale in a function beside the class."""
    return 0.25 * x


class ByFunction(Wrapper):
    """Scales in a function."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        return scaled(self.actor(x))


class ByMethod(Wrapper):
    """Scales in a method."""

    @torch.jit.export
    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        """Scale."""
        return 0.25 * x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        return self.scaled(self.actor(x))


class OwnLayers(nn.Module):
    """Layers whose class scales."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(5, 8), nn.ELU(), nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        return 0.25 * self.last(self.act(self.first(x)))


class InTheLayers(nn.Module):
    """Scales in the class of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.actor = OwnLayers()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Act."""
        return self.actor(x)


@pytest.mark.parametrize("kind", [Wrapper, ByFunction, ByMethod, InTheLayers])
def test_arithmetic_beside_the_layers_is_refused(kind, tmp_path):
    """An export that scales or clips in its own code is not read as its layers alone; it can be run as it is."""
    path = save_script(kind(), tmp_path / "policy.pt")
    with pytest.raises(UserError, match="beside its layers"):
        TeacherPolicyWrapper(path)
    assert_as_runtime(path, 5, run_as_is=True)


class WithEstimator(nn.Module):
    """A HIM-style policy: an estimator whose output the actor reads beside the observation."""

    def __init__(self) -> None:
        super().__init__()
        self.estimator = nn.Sequential(nn.Linear(10, 6), nn.ELU(), nn.Linear(6, 3))
        self.actor = nn.Sequential(nn.Linear(8, 8), nn.ELU(), nn.Linear(8, 2))

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        """Act."""
        return self.actor(torch.cat([history[:, :5], self.estimator(history)], dim=-1))


@pytest.mark.parametrize("strict", [True, False])
def test_advice_never_loses_a_layer(strict, tmp_path):
    """What the actions depend on is never offered to be left out; where it is left out all the same, it is said."""
    path = save_script(WithEstimator(), tmp_path / "policy.pt")
    with pytest.raises(UserError) as refusal:
        TeacherPolicyWrapper(path, strict=strict)
    assert "strict" not in str(refusal.value)
    assert "distill.teacher.run_as_is=true" in str(refusal.value)


# -- ONNX -----------------------------------------------------------------------------------------------------------


def save_onnx(path: Path, nodes: list, num_out: int, weights: dict[str, numpy.ndarray], opset: int = 11) -> Path:
    """Save a graph from ``obs`` of 6 numbers to ``continuous_actions``."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("obs", TensorProto.FLOAT, [1, 6])],
        [helper.make_tensor_value_info("continuous_actions", TensorProto.FLOAT, [1, num_out])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


def assert_as_onnxruntime(path: Path) -> None:
    """Assert that a teacher acts as onnxruntime, row by row."""
    teacher = TeacherPolicyWrapper(path)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for _ in range(STEPS):
        obs = torch.randn(ENVS, 6)
        expected = [session.run(["continuous_actions"], {"obs": row[None].numpy()})[0][0] for row in obs]
        assert numpy.abs(teacher.act(obs).numpy() - numpy.stack(expected)).max() <= 2e-5


SPLITS = {
    "two": (8, 2, -1, {}, 11),
    "three": (9, 3, 1, {}, 11),
    "one": (4, 1, -1, {}, 9),
    "sizes_attribute": (8, 2, -1, {"split": [3, 5]}, 11),
    "num_outputs": (9, 2, -1, {"num_outputs": 2}, 18),
    "num_outputs_even": (8, 4, 1, {"num_outputs": 4}, 20),
    "opset_13": (6, 2, -1, {}, 13),
    "sizes_input": (7, 2, -1, "input", 13),
}


@pytest.mark.parametrize("case", SPLITS)
def test_split(case, tmp_path):
    """A Split without sizes gives equal parts, one per output, as brax's exports have it; with sizes, those."""
    width, count, axis, attributes, opset = SPLITS[case]
    weights = {"w": RNG.standard_normal((6, width)).astype("f4")}
    inputs = ["y"]
    if attributes == "input":
        weights["sizes"] = numpy.array([5, 2])
        inputs.append("sizes")
        attributes = {}
    parts = [f"part_{index}" for index in range(count)]
    nodes = [
        helper.make_node("MatMul", ["obs", "w"], ["y"]),
        helper.make_node("Split", inputs, parts, axis=axis, **attributes),
        helper.make_node("Tanh", [parts[0]], ["continuous_actions"]),
    ]
    first = {"sizes_attribute": 3, "num_outputs": 5, "sizes_input": 5}.get(case, width // count)
    assert_as_onnxruntime(save_onnx(tmp_path / "policy.onnx", nodes, first, weights, opset))


def external(folder: Path) -> Path:
    """Write a model whose weights lie in a file beside it."""
    nodes = [helper.make_node("MatMul", ["obs", "w"], ["y"]), helper.make_node("Tanh", ["y"], ["continuous_actions"])]
    path = save_onnx(folder / "policy.onnx", nodes, 300, {"w": RNG.standard_normal((6, 300)).astype("f4")})
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="policy.onnx.data", size_threshold=0)
    return path


def test_onnx_behind_links_of_a_cache(tmp_path):
    """Both files behind links, their contents under other names in one folder, as a hub's cache keeps them."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1a2b"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    path = external(tmp_path)
    for name, digest in (("policy.onnx", "aaaa"), ("policy.onnx.data", "bbbb")):
        (tmp_path / name).rename(blobs / digest)
        (snapshot / name).symlink_to(Path("..") / ".." / "blobs" / digest)
    teacher = TeacherPolicyWrapper(snapshot / path.name)
    weights = numpy.frombuffer((blobs / "bbbb").read_bytes(), "f4").reshape(6, 300)
    obs = torch.randn(ENVS, 6)
    assert (teacher.act(obs) - torch.tanh(obs @ torch.tensor(weights))).abs().max() <= 1e-5


def test_onnx_link_to_the_model_alone(tmp_path):
    """A link to a model elsewhere reads the weights that lie beside the model."""
    (tmp_path / "real").mkdir()
    path = external(tmp_path / "real")
    (tmp_path / "latest.onnx").symlink_to(path)
    assert TeacherPolicyWrapper(tmp_path / "latest.onnx").num_actions == 300


def test_onnx_weights_that_lead_elsewhere_are_refused(tmp_path):
    """A link from the model's folder to a file in any other folder is not followed."""
    path = external(tmp_path)
    (tmp_path / "else").mkdir()
    (tmp_path / "policy.onnx.data").rename(tmp_path / "else" / "secret")
    (tmp_path / "policy.onnx.data").symlink_to(tmp_path / "else" / "secret")
    with pytest.raises(UserError, match="no plain file in its own folder"):
        TeacherPolicyWrapper(path)


def test_an_agent_config_behind_links_is_found(tmp_path):
    """The run's config is looked for where a checkpoint is named, and where it lies."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot" / "params").mkdir(parents=True)
    write_teacher(tmp_path / "blobs" / "cccc")
    (tmp_path / "snapshot" / "model.pt").symlink_to(tmp_path / "blobs" / "cccc")
    (tmp_path / "snapshot" / "params" / "agent.yaml").write_text("policy: {activation: tanh}\n")
    assert TeacherPolicyWrapper(tmp_path / "snapshot" / "model.pt").describe()["activation"] == "tanh"


@pytest.mark.parametrize("folder", ["exported", "nn", "checkpoints"])
def test_an_agent_config_of_the_run_around_is_read_and_named(folder, tmp_path, caplog):
    """A folder that runs keep policies in belongs to the run around it, whose config is read; a line says which."""
    (tmp_path / folder).mkdir()
    (tmp_path / "params").mkdir()
    write_teacher(tmp_path / folder / "model.pt")
    config = tmp_path / "params" / "agent.yaml"
    config.write_text("policy: {activation: tanh}\n")
    with caplog.at_level("INFO"):
        assert TeacherPolicyWrapper(tmp_path / folder / "model.pt").describe()["activation"] == "tanh"
    assert f"reading '{config}', as '{folder}' is a folder of that run" in caplog.text


@pytest.mark.parametrize("folder", ["x", "2026-01-01_00-00-00", "downloads", "params_old", "models"])
def test_a_stray_agent_config_one_folder_above_is_not_read(folder, tmp_path):
    """A config above a folder of any other name belongs to something else."""
    (tmp_path / folder).mkdir()
    (tmp_path / "params").mkdir()
    write_teacher(tmp_path / folder / "model.pt")
    (tmp_path / "params" / "agent.yaml").write_text("policy: {activation: tanh}\n")
    assert TeacherPolicyWrapper(tmp_path / folder / "model.pt").describe()["activation"] == "elu"


# -- pointers, wrappers, two layouts, critics -----------------------------------------------------------------------

POINTERS = {
    "git lfs pull": [
        f"version https://{name}/spec/v1\noid sha256:{'0' * 64}\nsize 645488\n"
        for name in ("git-lfs.github.com", "hawser.github.com")
    ]
    + ["version http://git-media.io/v/2\noid sha256:00\nsize 1\n"],
    "git annex get": ["/annex/objects/SHA256E-s1234--00.pt\n", "../../.git/annex/objects/W7/k2/MD5E-s1--0/MD5E-s1--0"],
}
"""Text in the place of a file, under the names that Git LFS has had, and of git-annex, by what fetches the file."""
KINDS = ["model_100.pt", "policy.onnx", "best_model.zip", "checkpoint.h5", "nn/last.pth", "x"]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("command", POINTERS)
def test_pointers_of_files_that_were_not_fetched(command, name, tmp_path):
    """A pointer in the place of a file of any kind is named, with the command that fetches the file."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    for text in POINTERS[command]:
        path.unlink(missing_ok=True)
        if text.startswith(".."):
            path.symlink_to(text)
        else:
            path.write_text(text)
        for read in (TeacherPolicyWrapper, load_checkpoint):
            with pytest.raises(UserError, match=command):
                read(path)


def test_what_only_resembles_a_pointer(tmp_path):
    """A link through an annex that is there is read, and so is text that begins otherwise."""
    annexed = tmp_path / ".git" / "annex" / "objects" / "model.pt"
    annexed.parent.mkdir(parents=True)
    write_teacher(annexed)
    (tmp_path / "model.pt").symlink_to(annexed)
    assert TeacherPolicyWrapper(tmp_path / "model.pt").num_obs > 0
    (tmp_path / "text.pt").write_text("versions of git-lfs\n/annex/objects/x\n")
    with pytest.raises(UserError, match="is not a PyTorch checkpoint"):
        TeacherPolicyWrapper(tmp_path / "text.pt")


def test_links_to_nothing(tmp_path):
    """A link whose file is gone is named with where it leads, for teachers, configs and data sets."""
    path = write_teacher(tmp_path / "model.pt")
    (tmp_path / "lost.pt").symlink_to("../blobs/0123")
    lost = r"lost\.pt' is a link to '\.\./blobs/0123', which does not exist"
    with pytest.raises(UserError, match=lost):
        TeacherPolicyWrapper(tmp_path / "lost.pt")
    for spec in (str(tmp_path), str(tmp_path / "*.pt")):  # one teacher less would be trained on without a word
        with pytest.raises(UserError, match=lost):
            find_teachers(spec)
    (tmp_path / "teachers.yaml").write_text(f"format: {FORMAT}\nteachers: [{{checkpoint: lost.pt}}]\n")
    with pytest.raises(UserError, match=lost):
        find_teachers(str(tmp_path))
    (tmp_path / "agent.yaml").symlink_to("gone.yaml")
    with pytest.raises(UserError, match=r"agent\.yaml' is a link to 'gone\.yaml'"):
        TeacherPolicyWrapper(path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").symlink_to("../gone.json")
    with pytest.raises(UserError, match=r"dataset\.json' is a link to '\.\./gone\.json'"):
        SavedDataset(tmp_path / "data")


def test_pointers_beside_a_file(tmp_path):
    """A pointer in the place of a config or of an ONNX file's weights is named too."""
    (pointer, *_) = POINTERS["git lfs pull"]
    path = write_teacher(tmp_path / "model.pt")
    (tmp_path / "agent.yaml").write_text(pointer)
    with pytest.raises(UserError, match=r"agent\.yaml.*git lfs pull"):
        TeacherPolicyWrapper(path)
    (tmp_path / "a" / "onnx").mkdir(parents=True)
    model = external(tmp_path / "a" / "onnx")
    (tmp_path / "a" / "onnx" / "policy.onnx.data").write_text(pointer)
    with pytest.raises(UserError, match=r"policy\.onnx\.data.*git lfs pull"):
        TeacherPolicyWrapper(model)


def rewrite(path: Path, change: Any) -> Path:
    """Change a checkpoint's content."""
    checkpoint = torch.load(path, weights_only=True)
    changed = change(checkpoint)
    torch.save(checkpoint if changed is None else changed, path)
    return path


def renamed(pattern: str) -> Any:
    """Return a change that puts a pattern such as ``module.{}`` around every entry's name."""

    def change(checkpoint: dict[str, Any]) -> None:
        state = checkpoint["model_state_dict"]
        checkpoint["model_state_dict"] = {pattern.format(key): value for key, value in state.items()}

    return change


def inside(wrapper: str) -> Any:
    """Return a change that wraps the actor alone."""

    def change(checkpoint: dict[str, Any]) -> None:
        state = checkpoint["model_state_dict"]
        checkpoint["model_state_dict"] = {
            key.replace("actor.", f"actor.{wrapper}."): value for key, value in state.items()
        }

    return change


@pytest.mark.parametrize(
    "change",
    [
        renamed("module.{}"), renamed("_orig_mod.{}"), renamed("module._orig_mod.{}"), renamed("_orig_mod.module.{}"),
        inside("_orig_mod"), inside("module"), renamed("_forward_module.{}"), renamed("_fsdp_wrapped_module.{}"),
        renamed("actor_critic.{}"), renamed("module.actor_critic.{}"), renamed("actor_critic._orig_mod.{}"),
    ],
)  # fmt: skip
def test_wrappers_names(change, tmp_path):
    """Names that parallel and compiled models put before their entries are seen through."""
    plain = TeacherPolicyWrapper(write_teacher(tmp_path / "plain.pt"))
    wrapped = TeacherPolicyWrapper(rewrite(write_teacher(tmp_path / "wrapped.pt"), change))
    obs = torch.randn(5, plain.num_obs)
    assert torch.equal(wrapped.act(obs), plain.act(obs))
    assert wrapped.has_value == plain.has_value


def test_a_name_that_is_no_wrapper_stays(tmp_path):
    """An entry beside what looks wrapped is not lost: the file is refused as before."""

    def change(checkpoint: dict[str, Any]) -> None:
        renamed("module.{}")(checkpoint)
        checkpoint["model_state_dict"]["memory_a.rnn.weight_ih_l0"] = torch.zeros(3, 3)

    with pytest.raises(UserError):
        TeacherPolicyWrapper(rewrite(write_teacher(tmp_path / "model.pt"), change))


def with_new_layout(spoil: str | None = None, keep: tuple[str, ...] = ("std", "body", "critic")) -> Any:
    """Return a change that adds the layout of RSL-RL 5 beside that of 1 to 3."""

    def change(checkpoint: dict[str, Any]) -> None:
        old = checkpoint["model_state_dict"]
        actor = {key.replace("actor.", "mlp."): value.clone() for key, value in old.items() if key.startswith("actor.")}
        if "std" in keep:
            actor["distribution.std_param"] = old["std"].clone()
        if spoil is not None:
            actor[spoil] += 0.1
        checkpoint["actor_state_dict"] = actor
        if "critic" in keep:
            critic = {key.replace("critic.", "mlp."): v for key, v in old.items() if key.startswith("critic.")}
            checkpoint["critic_state_dict"] = critic

    return change


@pytest.mark.parametrize("keep", [("std", "critic"), ("std",), ("critic",), ()])
def test_both_layouts_of_rsl_rl_at_once(keep, tmp_path):
    """A file of both layouts is read; what one of them lacks is the other's."""
    plain = TeacherPolicyWrapper(write_teacher(tmp_path / "plain.pt"))
    both = TeacherPolicyWrapper(rewrite(write_teacher(tmp_path / "both.pt"), with_new_layout(keep=keep)))
    obs = torch.randn(5, plain.num_obs)
    assert torch.equal(both.output(obs).mean, plain.output(obs).mean)
    assert torch.equal(both.output(obs).std, plain.output(obs).std)


@pytest.mark.parametrize("spoil", ["mlp.0.weight", "mlp.2.bias", "distribution.std_param"])
def test_both_layouts_that_differ_are_refused(spoil, tmp_path):
    """Where the two layouts hold different numbers neither is chosen in silence."""
    path = rewrite(write_teacher(tmp_path / "both.pt"), with_new_layout(spoil))
    with pytest.raises(UserError, match="two policies that differ"):
        TeacherPolicyWrapper(path)


def critic_is(value: Any) -> Any:
    """Return a change to the layout of RSL-RL 5 with something else for a critic."""

    def change(checkpoint: dict[str, Any]) -> None:
        with_new_layout()(checkpoint)
        del checkpoint["model_state_dict"]
        if value is None:
            del checkpoint["critic_state_dict"]
        else:
            checkpoint["critic_state_dict"] = value

    return change


def old_critic(**entries: torch.Tensor) -> Any:
    """Return a change that replaces the critic of the older layout."""

    def change(checkpoint: dict[str, Any]) -> None:
        state = checkpoint["model_state_dict"]
        kept = {key: value for key, value in state.items() if not key.startswith("critic.")}
        checkpoint["model_state_dict"] = kept | {key.replace("__", "."): value for key, value in entries.items()}

    return change


@pytest.mark.parametrize(
    "change",
    [
        critic_is({}), critic_is(None), critic_is("text"), critic_is({"cnn.0.weight": torch.zeros(3, 3, 3, 3)}),
        critic_is({"encoder.0.weight": torch.zeros(3, 3)}), critic_is({"mlp.0.weight": torch.zeros(3, 3)}),
        old_critic(), old_critic(critic__weight=torch.zeros(3, 3)),
        old_critic(critic_encoder__weight=torch.zeros(3, 3)),
        old_critic(critic__0__weight=torch.zeros(2, 4), critic__0__bias=torch.zeros(2)),
    ],
)  # fmt: skip
def test_an_actor_needs_no_critic(change, tmp_path, caplog):
    """A critic that is empty, missing, incomplete or of another kind leaves the actor as it is, without a value."""
    caplog.set_level("INFO")
    plain = TeacherPolicyWrapper(write_teacher(tmp_path / "plain.pt"))
    teacher = TeacherPolicyWrapper(rewrite(write_teacher(tmp_path / "odd.pt"), change))
    obs = torch.randn(5, plain.num_obs)
    assert torch.equal(teacher.act(obs), plain.act(obs))
    assert not teacher.has_value
    assert teacher.output(obs).value is None


def test_advice_can_be_typed(tmp_path):
    """Entries beside the actor are offered to be left out by what the command line takes; others are not."""

    def add(name: str) -> Any:
        return lambda checkpoint: checkpoint["model_state_dict"].update({name: torch.zeros(3, 3)})

    for name in ("discriminator.0.weight", "rnd.0.weight", "amp_discriminator.weight", "target_critic.0.weight"):
        path = rewrite(write_teacher(tmp_path / "model.pt"), add(name))
        with pytest.raises(UserError, match=r"distill\.teacher\.strict=false"):
            TeacherPolicyWrapper(path)
        TeacherPolicyWrapper(path, strict=False)
    for name in ("memory.weight_ih_l0", "estimator.0.weight", "mean_net.0.weight", "history_encoder.0.weight", "rnn.w"):
        with pytest.raises(UserError) as refusal:
            TeacherPolicyWrapper(rewrite(write_teacher(tmp_path / "model.pt"), add(name)))
        assert "strict" not in str(refusal.value)


# -- rl-tools -------------------------------------------------------------------------------------------------------


def write_rl_tools(path: Path, inputs: dict[str, numpy.ndarray], wrong: bool = False) -> Path:
    """Write one dense layer with numbered examples, as newer rl-tools does."""
    h5py = pytest.importorskip("h5py")
    weight, bias = RNG.standard_normal((2, 3)).astype("f4"), RNG.standard_normal(2).astype("f4")
    with h5py.File(path, "w") as file:
        layer = file.create_group("actor/layers/0")
        file["actor"].attrs["type"] = "sequential"
        layer.attrs["type"], layer.attrs["activation_function"] = "dense", "IDENTITY"
        layer.create_dataset("weights/parameters", data=weight)
        layer.create_dataset("biases/parameters", data=bias)
        for name, value in inputs.items():
            file.create_dataset(f"example/inputs/{name}", data=value)
            output = value @ weight.T + bias + (0.1 if wrong and name == "1" else 0.0)
            file.create_dataset(f"example/outputs/{name}", data=output.astype("f4"))
    return path


@pytest.mark.parametrize(
    "shapes", [{"0": (5, 2, 3)}, {"0": (500, 1, 3)}, {"0": (4, 3)}, {"0": (1, 1, 3), "1": (7, 2, 3)}, {"0": (2, 9, 3)}]
)
def test_numbered_examples_of_rl_tools(shapes, tmp_path):
    """``example/inputs/0`` and its siblings are checked, all of them."""
    inputs = {name: RNG.standard_normal(shape).astype("f4") for name, shape in shapes.items()}
    assert TeacherPolicyWrapper(write_rl_tools(tmp_path / "c.h5", inputs)).describe()["checked_against_example"] is True
    if "1" in shapes:
        with pytest.raises(UserError, match="own example"):
            TeacherPolicyWrapper(write_rl_tools(tmp_path / "wrong.h5", inputs, wrong=True))
