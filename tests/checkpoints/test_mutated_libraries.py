"""Damaged and hostile checkpoints of other libraries: refused in one clear line or loaded right; none runs anything."""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import pickle
import random
import shutil
import sys
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
import yaml

from foundation.core.errors import UserError
from foundation.teachers import TeacherPolicyWrapper

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from test_mutated_checkpoints import Evil, flip_bits, poison, rename, reshape, retype, truncate  # noqa: E402

DATA = HERE / "data"
KINDS = {
    "skrl": "skrl-1.4.3/normalized/checkpoints/agent_8.pt",
    "skrl_shared": "skrl-1.4.3/shared/checkpoints/agent_8.pt",
    "rl_games": "rl_games-1.6.5/separate/nn/case.pth",
    "rl_games_gru": "rl_games-1.6.5/gru_first/nn/case.pth",
    "sb3": "stable-baselines3-2.9.2/ppo/model.zip",
    "sb3_dqn": "stable-baselines3-2.9.2/dqn/model.zip",
}
WATCHED = torch.randn(4, 7, generator=torch.Generator().manual_seed(1))
BYTES = {"truncated": (truncate, 36), "flipped": (flip_bits, 72)}
CONTENT = {"renamed": (rename, 60), "reshaped": (reshape, 48), "poisoned": (poison, 18), "retyped": (retype, 36)}
DAMAGED = [
    pytest.param(kind, name, seed, id=f"{name}-{kind}-{seed}")
    for name, (_, count) in {**BYTES, **CONTENT}.items()
    for kind in KINDS
    for seed in range(count // len(KINDS))
]


def place(kind: str, folder: Path) -> Path:
    """Copy a case with what lies beside it; return its checkpoint."""
    parts = Path(KINDS[kind]).parts
    shutil.copytree(DATA / parts[0] / parts[1], folder, dirs_exist_ok=True)
    return folder.joinpath(*parts[2:])


def read(path: Path) -> dict:
    """Return what a checkpoint holds; the archive of Stable-Baselines3 as one entry."""
    if path.suffix != ".zip":
        with torch.serialization.safe_globals([numpy._core.multiarray.scalar, numpy.dtype, numpy.dtypes.Float32DType]):
            return torch.load(path, weights_only=True)
    with zipfile.ZipFile(path) as archive:
        return {"policy": torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True)}


def replace(path: Path, **members: bytes) -> None:
    """Write an archive again with other members; ``policy`` and ``variables`` stand for the .pth files."""
    names = {"policy": "policy.pth", "variables": "pytorch_variables.pth"}
    with zipfile.ZipFile(path) as archive:
        kept = {name: archive.read(name) for name in archive.namelist()}
    kept |= {names.get(name, name): content for name, content in members.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in kept.items():
            archive.writestr(name, content)


def save(path: Path, checkpoint: dict) -> None:
    """Write what :func:`read` gave."""
    if path.suffix != ".zip":
        torch.save(checkpoint, path)
        return
    stream = io.BytesIO()
    torch.save(checkpoint.get("policy", checkpoint), stream)
    replace(path, policy=stream.getvalue())


def answers(path: Path) -> torch.Tensor:
    """Return what a teacher says in two steps."""
    teacher = TeacherPolicyWrapper(path)
    outputs = [teacher.output(WATCHED), teacher.output(WATCHED * 0.5)]
    fields = [[v for v in (o.mean, o.std, o.logits, o.value) if v is not None] for o in outputs]
    return torch.cat([torch.cat(values, dim=-1) for values in fields])


def outcome(kind: str, path: Path, tmp_path: Path) -> str:
    """Return "refused" or "right"; anything else fails."""
    try:
        got = answers(path)
    except UserError as error:
        line = str(error)
        assert "\n" not in line and path.name in line and len(line) < 700, line
        return "refused"
    expected = answers(place(kind, tmp_path / "original"))
    assert torch.equal(got, expected[:, : got.shape[1]]), "loaded, but it acts differently"
    return "right"


@pytest.mark.parametrize(("kind", "name", "seed"), DAMAGED)
def test_damaged_checkpoint(kind, name, seed, tmp_path):
    """A truncated, bit-flipped, renamed, reshaped, NaN or retyped checkpoint is refused or acts as the original."""
    rng = random.Random(f"{kind}{name}{seed}")
    path = place(kind, tmp_path / "corrupt")
    if name in BYTES:
        path.write_bytes(BYTES[name][0](path.read_bytes(), rng))
    else:
        checkpoint = copy.deepcopy(read(path))
        CONTENT[name][0](checkpoint, rng)
        save(path, checkpoint)
    result = outcome(kind, path, tmp_path)
    if name == "truncated":
        assert result == "refused"


@pytest.mark.parametrize("kind", KINDS)
def test_undamaged_checkpoint(kind, tmp_path):
    """The originals load, written again too, so that a refusal above is one of the damage."""
    path = place(kind, tmp_path / "corrupt")
    save(path, read(path))
    assert outcome(kind, path, tmp_path) == "right"


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_entry_is_refused(kind, tmp_path):
    """Each of the actor's entries is needed, or the file is refused; without one of the critic's there is no value."""
    path = place(kind, tmp_path / "corrupt")
    original, tried = read(path), 0
    for part in ("policy", "model", "state_preprocessor", "value_preprocessor", "value"):
        for key in original.get(part, {}):
            if "target" in key or (kind == "skrl_shared" and part == "value"):
                continue  # of the algorithm; said twice
            checkpoint = copy.deepcopy(original)
            del checkpoint[part][key]
            save(path, checkpoint)
            tried += 1
            if part.startswith("value") or any(name in key for name in ("value", "critic", "c_rnn", "c_layer")):
                assert outcome(kind, path, tmp_path) == "right"  # as far as it answers
                assert not TeacherPolicyWrapper(path).has_value
                continue
            with pytest.raises(UserError):
                answers(path)
    for part in ("policy", "model", "state_preprocessor", "value_preprocessor"):
        if part in original and path.suffix != ".zip":
            save(path, {key: value for key, value in original.items() if key != part})
            if part == "value_preprocessor":
                assert not TeacherPolicyWrapper(path).has_value
                continue
            with pytest.raises(UserError):
                answers(path)
    assert tried >= 6


@pytest.mark.parametrize("where", ["optimizer", "weights", "bare", "old_format", "extra_record"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.startswith("sb3")])
def test_hostile_checkpoint(kind, where, tmp_path):
    """Pickles that would run code, anywhere in the file, are refused and run nothing."""
    marker, path = tmp_path / "marker", place(kind, tmp_path / "corrupt")
    evil = Evil(os.mkdir, str(marker))
    checkpoint = read(path)
    if where == "bare":
        path.write_bytes(pickle.dumps(evil))
    elif where == "extra_record":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("evil/data.pkl", pickle.dumps(evil))
    else:
        part = next(name for name in ("policy", "model") if name in checkpoint)
        if where == "weights":
            checkpoint[part]["evil"] = evil
        else:
            checkpoint["optimizer"] = evil
        torch.save(checkpoint, path, _use_new_zipfile_serialization=where != "old_format")
    result = outcome(kind, path, tmp_path)
    assert result == "refused" or where == "extra_record"  # a record that nobody reads does no harm
    assert not marker.exists()


@pytest.mark.parametrize("where", ["weights", "data", "variables", "optimizer", "vecnormalize", "extra"])
@pytest.mark.parametrize("kind", ["sb3", "sb3_dqn"])
def test_hostile_archive(kind, where, tmp_path):
    """Pickles in any member of the archive, in its JSON and beside it are never loaded."""
    marker, path = tmp_path / "marker", place(kind, tmp_path / "corrupt")
    bomb = pickle.dumps(Evil(os.mkdir, str(marker)))
    stream = io.BytesIO()
    torch.save({"evil": Evil(os.mkdir, str(marker))}, stream)
    if where == "weights":
        replace(path, policy=random.choice([bomb, stream.getvalue()]))
    elif where == "data":
        with zipfile.ZipFile(path) as archive:
            data = json.loads(archive.read("data"))
        for value in (*data.values(), data):
            if isinstance(value, dict):
                value[":serialized:"] = base64.b64encode(bomb).decode()
        data["clip_range"] = {":type:": "<class 'function'>", ":serialized:": base64.b64encode(bomb).decode()}
        replace(path, data=json.dumps(data).encode())
    elif where == "vecnormalize":
        (path.parent / "model_vecnormalize.pkl").write_bytes(bomb)
    else:
        replace(path, **{"variables" if where == "variables" else f"{where}.pth": stream.getvalue()})
    assert outcome(kind, path, tmp_path) == ("refused" if where in ("weights", "vecnormalize") else "right")
    assert not marker.exists()


def nodes(config) -> list[tuple]:
    """Return (container, key) of everything in a nested config."""
    items = config.items() if isinstance(config, dict) else enumerate(config) if isinstance(config, list) else ()
    found = [(config, key) for key, _ in items]
    return found + [pair for _, value in list(items) for pair in nodes(value)]


@pytest.mark.parametrize("seed", range(25))
@pytest.mark.parametrize("kind", ["skrl", "skrl_shared", "rl_games", "rl_games_gru"])
def test_damaged_config(kind, seed, tmp_path, caplog):
    """A config beside a checkpoint with anything in the place of anything is understood or refused in one line."""
    rng, path = random.Random(f"{kind}{seed}"), place(kind, tmp_path / "corrupt")
    config_path = path.parent.parent / "params" / "agent.yaml"
    config = yaml.safe_load(config_path.read_text())
    for _ in range(3):
        container, key = rng.choice(nodes(config))
        container[key] = rng.choice(
            ("text", 3, -1.5, None, [], [1.0, "x"], {"a": 1}, [{}], True, float("nan"), float("inf"), [[3], "elu"])
        )
    config_path.write_text(yaml.safe_dump(config))
    try:
        assert torch.isfinite(answers(path)).all()
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 700


@pytest.mark.parametrize(
    "data", [b"", b"[1]", b"{", b"[" * 100_000, b'{"policy_kwargs": {"activation_fn": "<class \'x.Odd\'>"}}']
)
def test_damaged_json(data, tmp_path):
    """JSON that is empty, no mapping, deeper than any, or that names an unknown activation is refused in one line."""
    path = place("sb3", tmp_path / "corrupt")
    replace(path, data=data)
    assert outcome("sb3", path, tmp_path) == "refused"


def test_archive_that_unpacks_to_too_much(tmp_path):
    """A small archive of a huge member is refused before it is unpacked."""
    path = place("sb3", tmp_path / "corrupt")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", b"")
        with archive.open("many", "w") as member:
            for _ in range(80):
                member.write(bytes(1 << 20))
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("many")
    claimed = (3 << 30).to_bytes(4, "little")
    path.write_bytes(content.replace(info.file_size.to_bytes(4, "little"), claimed))
    with pytest.raises(UserError, match="unpack"):
        answers(path)


def test_statistics_are_those_of_the_models_name_whatever_its_case(tmp_path):
    """Of several statistics in a folder a model gets its own; one without any of its name is told to choose."""
    source = DATA / "stable-baselines3-2.9.2" / "normalized"
    for name in ("Walker", "runner"):
        shutil.copy(source / "model.zip", tmp_path / f"{name}.zip")
        shutil.copy(source / "model_vecnormalize.npz", tmp_path / f"{name}_vecnormalize.npz")
    for name in ("Walker", "runner"):
        described = TeacherPolicyWrapper(tmp_path / f"{name}.zip").describe()
        assert f"({name}_vecnormalize.npz)" in described["normalizer"]
    shutil.copy(source / "model.zip", tmp_path / "other.zip")
    with pytest.raises(UserError, match="several statistics"):
        TeacherPolicyWrapper(tmp_path / "other.zip")


def test_statistics_beside_a_model(tmp_path):
    """VecNormalize's statistics are needed where its pickle or the config says so, and the refusal says how."""
    source = DATA / "stable-baselines3-2.9.2" / "normalized"
    shutil.copy(source / "model.zip", tmp_path)
    (tmp_path / "model_vecnormalize.pkl").write_bytes(b"never read")
    with pytest.raises(UserError, match=r"numpy\.savez") as refusal:
        answers(tmp_path / "model.zip")
    assert "\n" not in str(refusal.value)
    assert TeacherPolicyWrapper(tmp_path / "model.zip", strict=False).describe()["obs_normalization"] is False
    shutil.copy(source / "model_vecnormalize.npz", tmp_path)
    assert torch.equal(answers(tmp_path / "model.zip"), answers(source / "model.zip"))
    numbers = dict(numpy.load(tmp_path / "model_vecnormalize.npz"))
    bad = (("mean", numbers["mean"][:3]), ("var", -numbers["var"]), ("mean", numbers["mean"] * numpy.nan))
    for name, value in (*bad, ("clip_obs", numpy.array(["x"], dtype=object))):
        numpy.savez(tmp_path / "model_vecnormalize.npz", **(numbers | {name: value}))
        with pytest.raises(UserError, match=r"vecnormalize\.npz"):
            answers(tmp_path / "model.zip")
    (tmp_path / "model_vecnormalize.npz").unlink()
    (tmp_path / "model_vecnormalize.pkl").unlink()
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "agent.yaml").write_text(yaml.safe_dump({"normalize_input": True}))
    with pytest.raises(UserError, match="normalize_input"):
        answers(tmp_path / "model.zip")
