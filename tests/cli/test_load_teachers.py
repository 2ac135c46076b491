"""Many teachers change the environment's config only where its task has declared it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from foundation.cli.load_teachers import fit_environments
from foundation.core.errors import UserError
from foundation.engines.base import variants_key
from foundation.engines.torch import TorchEngine
from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg
from foundation.teachers.ensemble import TeacherEnsemble, load_ensemble
from foundation.teachers.manifest import TeacherEntry
from tests.helpers.many_teachers import write_mlp


class TerrainCfg(SimpleNamespace):
    """A config of a task that differs by terrain."""

    def variants_key(self) -> str:
        return "terrains"


@pytest.fixture
def teachers(tmp_path: Path) -> TeacherEnsemble:
    """Two teachers, each with a file of its own."""
    names = ("a", "b")
    entries = [TeacherEntry(name, write_mlp(tmp_path / name / "model_1.pt", seed)) for seed, name in enumerate(names)]
    ensemble = load_ensemble(entries, "cpu", "per_env")
    ensemble.vehicles = ["one.json", "two.json"]
    return ensemble


def test_the_task_names_the_field_that_takes_the_teachers_files(teachers: TeacherEnsemble) -> None:
    """A task of another room gets the files in the field that it declares; five environments become six."""
    cfg = TerrainCfg(num_envs=5, terrains=None, vehicles=None)
    fit_environments(TorchEngine(), cfg, teachers)
    assert cfg.terrains == ["one.json", "two.json"] and cfg.vehicles is None
    assert cfg.num_envs == 6


def test_files_that_the_user_has_given_are_kept(teachers: TeacherEnsemble, caplog: pytest.LogCaptureFixture) -> None:
    """``env.terrains=[mine]`` beats the manifest, with a warning that names it."""
    cfg = TerrainCfg(num_envs=6, terrains=["mine"])
    fit_environments(TorchEngine(), cfg, teachers)
    assert cfg.terrains == ["mine"] and "env.terrains" in caplog.text


def test_a_task_that_declares_no_variants_refuses_the_manifest(teachers: TeacherEnsemble) -> None:
    """Nothing is set in a config that has not asked for it, whatever its fields are called."""
    cfg = SimpleNamespace(num_envs=6, vehicles=None)
    with pytest.raises(UserError, match="variants_key"):
        fit_environments(TorchEngine(), cfg, teachers)
    assert cfg.vehicles is None


def test_the_quadrotors_declare_their_vehicles() -> None:
    """The built-in task's field is ``env.vehicles``."""
    cfg = QuadcopterPointCtrlEnvCfg()
    key = variants_key(cfg)
    assert key == "vehicles" and cfg.vehicles is None
