"""Damaged and hostile checkpoints: refused in one clear line or loaded right; none executes anything."""

from __future__ import annotations

import copy
import os
import pickle
import random
import zipfile
from itertools import pairwise

import pytest
import torch
import yaml

from foundation.core.errors import UserError
from foundation.core.files import atomic_torch_save
from foundation.students import StudentPolicy
from foundation.teachers import TeacherPolicyWrapper

OBS, ACTIONS = 7, 2


def linear(prefix, sizes):
    """Return the tensors of a perceptron under a prefix, in RSL-RL's numbering."""
    out = {}
    for layer, (num_in, num_out) in enumerate(pairwise(sizes)):
        out[f"{prefix}{2 * layer}.weight"] = torch.randn(num_out, num_in) * 0.3
        out[f"{prefix}{2 * layer}.bias"] = torch.randn(num_out) * 0.3
    return out


def normalizer(prefix, size):
    """Return the tensors of a fitted normaliser of RSL-RL."""
    std = torch.rand(1, size) + 0.5
    values = {"_mean": torch.randn(1, size), "_var": std**2, "_std": std, "count": torch.tensor(99)}
    return {f"{prefix}{name}": value for name, value in values.items()}


def gru(prefix, num_in, size):
    """Return the tensors of a GRU under a prefix."""
    return {f"{prefix}{k}": v for k, v in torch.nn.GRU(num_in, size).state_dict().items()}


def originals():
    """Return checkpoints of every layout with the config that lies beside each."""
    torch.manual_seed(0)
    net, optimizer = [OBS, 12, 10, ACTIONS], {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]}
    common = {"optimizer_state_dict": optimizer, "iter": 5, "infos": None}
    critic = linear("critic.", [OBS, 8, 1])
    two = {
        "model_state_dict": {"std": torch.rand(ACTIONS) + 0.1, **linear("actor.", net), **critic},
        "obs_norm_state_dict": normalizer("", OBS),
        "privileged_obs_norm_state_dict": normalizer("", OBS),
    }
    three = {
        "model_state_dict": {
            "log_std": torch.randn(ACTIONS),
            **normalizer("actor_obs_normalizer.", OBS),
            **gru("memory_a.rnn.", OBS, 6),
            **linear("actor.", [6, 10, ACTIONS]),
            **gru("memory_c.rnn.", OBS, 6),
            **linear("critic.", [6, 10, 1]),
        }
    }
    five = {
        "actor_state_dict": {
            **normalizer("obs_normalizer.", OBS),
            "distribution.std_param": torch.rand(ACTIONS) + 0.1,
            **linear("mlp.", net),
        },
        "critic_state_dict": linear("mlp.", [OBS, 8, 1]),
    }
    student = StudentPolicy(OBS, ACTIONS, (12, 10), "tanh", stochastic=True)
    student.normalizer.update(torch.randn(50, OBS) * 2 + 1)
    ours = {
        "model_state_dict": student.state_dict(),
        "student": student.describe(),
        "epoch": 3,
        "obs_groups": ["policy"],
    }
    policy = {"activation": "tanh", "state_dependent_std": False}
    old_cfg = {"policy": policy, "empirical_normalization": True}
    gaussian = {"class_name": "rsl_rl.modules:GaussianDistribution"}
    new_cfg = {"actor": {"activation": "tanh", "obs_normalization": True, "distribution_cfg": gaussian}}
    return {
        "2": (two | common, old_cfg),
        "3": (three | common, old_cfg),
        "5": (five | common, new_cfg),
        "ours": (ours, {}),
    }


ORIGINALS = originals()
WATCHED = torch.randn(4, OBS, generator=torch.Generator().manual_seed(1))


def save(kind, folder, checkpoint=None):
    """Write a checkpoint (by default the undamaged one) with its config beside it; return its path."""
    original, cfg = ORIGINALS[kind]
    (folder / "params").mkdir(parents=True, exist_ok=True)
    (folder / "params" / "agent.yaml").write_text(yaml.safe_dump(cfg))
    atomic_torch_save(original if checkpoint is None else checkpoint, folder / "model_5.pt")
    return folder / "model_5.pt"


def answers(path):
    """Return actions and deviations of two steps, for comparison."""
    teacher = TeacherPolicyWrapper(path)
    outputs = [teacher.output(WATCHED), teacher.output(WATCHED * 0.5)]
    return torch.stack([torch.cat([o.mean, o.std], dim=-1) for o in outputs])


def outcome(kind, path, tmp_path):
    """Return "refused" or "right"; anything else fails."""
    try:
        got = answers(path)
    except UserError as error:
        line = str(error)
        assert "\n" not in line and "model_5.pt" in line and len(line) < 700, line
        return "refused"
    expected = answers(save(kind, tmp_path / "original"))
    assert torch.equal(got, expected), "loaded, but it acts differently"
    return "right"


def leaves(checkpoint):
    """Return (mapping, key) of every entry at the top and inside the state_dicts."""
    found = [(checkpoint, key) for key in checkpoint]
    for value in checkpoint.values():
        if isinstance(value, dict):
            found += [(value, inner) for inner in value]
    return found


def truncate(content, rng):
    return content[: rng.randrange(len(content))]


def flip_bits(content, rng):
    corrupt = bytearray(content)
    for _ in range(rng.choice((1, 1, 3))):
        corrupt[rng.randrange(len(corrupt))] ^= 1 << rng.randrange(8)
    return bytes(corrupt)


def rename(checkpoint, rng):
    mapping, key = rng.choice(leaves(checkpoint))
    text = str(key)
    at = rng.randrange(len(text))
    mapping[rng.choice((text + "x", text[:at] + "q" + text[at + 1 :], "other_" + text))] = mapping.pop(key)


def tensor_entry(checkpoint, rng):
    return rng.choice([(m, k) for m, k in leaves(checkpoint) if isinstance(m[k], torch.Tensor)])


def reshape(checkpoint, rng):
    mapping, key = tensor_entry(checkpoint, rng)
    value = mapping[key]
    choices = [
        torch.cat([value.reshape(-1), torch.zeros(1)]),
        value.reshape(-1)[:-1],
        value.unsqueeze(0).repeat(2, *[1] * value.dim()),
    ]
    if value.dim() == 2:
        choices += [value[:-1], value[:, :-1], value.t().contiguous(), torch.cat([value, value[:1]])]
    mapping[key] = rng.choice(choices).float()


def poison(checkpoint, rng):
    mapping, key = tensor_entry(checkpoint, rng)
    value = mapping[key] = mapping[key].clone().float().reshape(mapping[key].shape)
    value.view(-1)[rng.randrange(value.numel())] = rng.choice((float("nan"), float("inf"), float("-inf")))


def retype(checkpoint, rng):
    mapping, key = rng.choice(leaves(checkpoint))
    mapping[key] = rng.choice(("text", 3, None, [1.0, 2.0], {"a": 1}, torch.tensor(True), {}))


BYTES = {"truncated": (truncate, 40), "flipped": (flip_bits, 80)}
CONTENT = {"renamed": (rename, 60), "reshaped": (reshape, 40), "poisoned": (poison, 20), "retyped": (retype, 40)}
DAMAGED = [
    pytest.param(kind, name, seed, id=f"{name}-{kind}-{seed}")
    for name, (_, count) in {**BYTES, **CONTENT}.items()
    for kind in ORIGINALS
    for seed in range(count // len(ORIGINALS))
]


@pytest.mark.parametrize(("kind", "name", "seed"), DAMAGED)
def test_damaged_checkpoint(kind, name, seed, tmp_path):
    """A truncated, bit-flipped, renamed, reshaped, NaN or retyped checkpoint is refused or acts as the original."""
    rng = random.Random(f"{kind}{name}{seed}")
    if name in BYTES:
        path = save(kind, tmp_path / "corrupt")
        path.write_bytes(BYTES[name][0](path.read_bytes(), rng))
    else:
        checkpoint = copy.deepcopy(ORIGINALS[kind][0])
        CONTENT[name][0](checkpoint, rng)
        path = save(kind, tmp_path / "corrupt", checkpoint)
    result = outcome(kind, path, tmp_path)
    if name in ("truncated",):
        assert result == "refused"


@pytest.mark.parametrize("kind", ORIGINALS)
def test_undamaged_checkpoint(kind, tmp_path):
    """The originals load, so that a refusal above is one of the damage."""
    assert outcome(kind, save(kind, tmp_path / "corrupt"), tmp_path) == "right"


@pytest.mark.parametrize("kind", ORIGINALS)
def test_a_missing_entry_is_refused(kind, tmp_path):
    """Each of the actor's entries is needed, or the file is refused; without one of the critic's there is no value."""
    original = ORIGINALS[kind][0]
    spared = {"count", "optimizer_state_dict", "iter", "infos", "epoch", "obs_groups", "critic_state_dict"}
    for mapping_name, mapping in [(None, original), *[(k, v) for k, v in original.items() if k.endswith("state_dict")]]:
        for key in mapping:
            name = str(key).rsplit(".", 1)[-1]
            if name in spared or mapping_name == "optimizer_state_dict" or "privileged" in f"{mapping_name}{key}":
                continue
            if name in ("_var", "_std") and kind != "ours":
                continue  # each is the other's square or root
            checkpoint = copy.deepcopy(original)
            del (checkpoint if mapping_name is None else checkpoint[mapping_name])[key]
            path = save(kind, tmp_path / "corrupt", checkpoint)
            if (kind != "ours" and str(key).startswith(("critic", "memory_c"))) or mapping_name == "critic_state_dict":
                teacher = TeacherPolicyWrapper(path)
                assert not teacher.has_value
                assert torch.equal(
                    teacher.act(WATCHED), TeacherPolicyWrapper(save(kind, tmp_path, original)).act(WATCHED)
                )
                continue
            with pytest.raises(UserError):
                answers(path)


class Evil:
    """Runs a function when unpickled."""

    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "place", ["top", "infos", "weights", "student", "bare", "old_format", "extra_record", "scripted"]
)
@pytest.mark.parametrize("kind", ORIGINALS)
def test_hostile_checkpoint(kind, place, tmp_path):
    """Pickles that would run code, anywhere in the file, are refused and run nothing."""
    marker = tmp_path / "marker"
    evil = Evil(os.mkdir, str(marker))
    evals = Evil(eval, f"__import__('os').mkdir({str(marker)!r})")
    path = save(kind, tmp_path / "corrupt")
    checkpoint = dict(ORIGINALS[kind][0])
    if place in ("bare", "old_format"):
        checkpoint["infos"] = evil
        if place == "bare":
            path.write_bytes(pickle.dumps(evil))
        else:
            torch.save(checkpoint, path, _use_new_zipfile_serialization=False)
    elif place == "extra_record":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("model_5/evil.pkl", pickle.dumps(evil))
            archive.writestr("evil/data.pkl", pickle.dumps(evil))
    elif place == "scripted":
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("evil/constants.pkl", pickle.dumps(evil))
    else:
        if place == "weights":
            checkpoint["model_state_dict"] = {"actor.0.weight": evals}
        else:
            checkpoint[place] = evil if place != "student" else {"name": evil}
        torch.save(checkpoint, path)
    try:
        got = answers(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:  # a record that nobody reads does no harm
        assert place == "extra_record" and torch.equal(got, answers(save(kind, tmp_path / "original")))
    assert not marker.exists()


class Exported(torch.nn.Module):
    """A policy as RSL-RL exports it, as far as its names go."""

    def __init__(self):
        super().__init__()
        self.mlp = torch.nn.Sequential(torch.nn.Linear(OBS, 12), torch.nn.Tanh(), torch.nn.Linear(12, ACTIONS))

    def forward(self, x):
        """Act."""
        return self.mlp(x)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """An exported policy, and the actions that it gives when it is run."""
    torch.manual_seed(0)
    module = Exported()
    path = tmp_path_factory.mktemp("script") / "policy.pt"
    torch.jit.save(torch.jit.script(module), path)
    return path.read_bytes(), module(WATCHED).detach()


@pytest.mark.parametrize("seed", range(40))
def test_damaged_export(script, seed, tmp_path):
    """A truncated or bit-flipped TorchScript export is refused in one line or acts as the original."""
    rng, path = random.Random(seed), tmp_path / "policy.pt"
    path.write_bytes((truncate if seed % 4 == 0 else flip_bits)(script[0], rng))
    try:
        got = TeacherPolicyWrapper(path).act(WATCHED)
    except UserError as error:
        assert "\n" not in str(error) and "policy.pt" in str(error)
    else:
        assert torch.allclose(got, script[1], atol=1e-6)


@pytest.mark.parametrize("function", ["os.mkdir", "builtins.eval", "torch.load", "torch.jit._pickle.build_evil"])
def test_hostile_export(script, function, tmp_path):
    """A TorchScript archive whose pickle calls anything but the few known names is refused and runs nothing."""
    marker, path = tmp_path / "marker", tmp_path / "policy.pt"
    module, name = function.rsplit(".", 1)
    argument = pickle.dumps((str(marker),), protocol=2)[2:-1]
    evil = b"\x80\x02c" + f"{module}\n{name}\n".encode() + argument + b"R."
    source = tmp_path / "source.pt"
    source.write_bytes(script[0])
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for record in old.namelist():
            new.writestr(record, evil if record.endswith("/data.pkl") else old.read(record))
    with pytest.raises(UserError, match="not part of a policy"):
        TeacherPolicyWrapper(path)
    assert not marker.exists()
