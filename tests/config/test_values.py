"""Typed, closed updates of config objects."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import sys
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from foundation.config.derived_cfg import DerivedObsCfg
from foundation.config.values import apply_values
from foundation.core.errors import UserError


class Color(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass
class Inner:
    gain: float = 1.0
    count: int = 2
    note: str = ""


@dataclass
class Outer:
    inner: Inner = field(default_factory=Inner)
    maybe: Inner | None = None
    number_or_inner: float | Inner = 1.0
    flag: bool = False
    count: int | None = None
    sizes: list[int] = field(default_factory=lambda: [1, 2])
    pair: tuple[float, float] = (0.0, 0.0)
    weights: dict[str, float] = field(default_factory=dict)
    groups: dict[str, list[str]] = field(default_factory=lambda: {"policy": ["a"]})
    anything: Any = None
    mode: Literal["x", "y"] = "x"
    color: Color = Color.RED
    path: Path = Path(".")
    func: Callable[[int], int] = abs
    many: list[Inner] = field(default_factory=lambda: [Inner(), Inner()])


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("inner.gain", 3, 3.0),
        ("inner.note", 7, "7"),
        ("count", 4, 4),
        ("count", None, None),
        ("flag", True, True),
        ("sizes", [3], [3]),
        ("sizes", [], []),
        ("pair", [1, 2], (1.0, 2.0)),
        ("weights.value", 1, 1.0),
        ("groups.critic", ["b", "c"], ["b", "c"]),
        ("anything", [1, "a"], [1, "a"]),
        ("mode", "y", "y"),
        ("color", "BLUE", Color.BLUE),
        ("path", "a/b", Path("a/b")),
        ("func", "math:floor", __import__("math").floor),
        ("maybe.count", 5, 5),
        ("number_or_inner", 2, 2.0),
        ("number_or_inner.count", 6, 6),
        ("many.1.count", 9, 9),
    ],
)
def test_fitting_values_are_set_and_converted(key: str, value: Any, expected: Any, typed: Any) -> None:
    """A value that fits its annotation arrives, as the type that the annotation names."""
    typed(f"env.{key}={value}")
    cfg = Outer()
    apply_values(cfg, {key: value}, "env")
    found: Any = cfg
    for name in key.split("."):
        found = found[name] if isinstance(found, dict) else found[int(name)] if name.isdigit() else getattr(found, name)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("inner.gain", "abc"),
        ("inner.gain", True),
        ("inner.gain", None),
        ("inner.gain", float("nan")),
        ("inner.count", 1.0),
        ("inner.count", 1.5),
        ("inner.count", True),
        ("inner.count", "3"),
        ("inner", 3),
        ("maybe", "x"),
        ("number_or_inner", "x"),
        ("flag", 1),
        ("flag", "true"),
        ("count", "many"),
        ("sizes", 3),
        ("sizes", ["a"]),
        ("sizes", [1.5]),
        ("pair", [1, 2, 3]),
        ("weights.value", "x"),
        ("groups.policy", "b"),
        ("mode", "z"),
        ("color", "GREEN"),
        ("func", "math:nothing"),
        ("func", "no.such.module:f"),
        ("func", 3),
        ("flag.x", 3),
        ("count.x", 3),
    ],
)
def test_misfits_are_refused_by_their_full_name(key: str, value: Any, typed: Any) -> None:
    """A value of the wrong type is a one-line error that names the full key, and nothing is changed."""
    typed(f"env.{key}={value}")
    cfg = Outer()
    with pytest.raises(UserError) as caught:
        apply_values(cfg, {key: value}, "env")
    assert f"env.{key}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert cfg == Outer()


@pytest.mark.parametrize(
    ("key", "named", "nearest"),
    [
        ("iner.gain", "env.iner", "'inner'"),
        ("inner.gian", "env.inner.gian", "'gain'"),
        ("inner.sub.x", "env.inner.sub", "gain"),
        ("maybe.cuont", "env.maybe.cuont", "'count'"),
        ("many.7.count", "env.many.7", "0, 1"),
        ("__class__", "env.__class__", "Valid are"),
    ],
)
def test_unknown_keys_are_refused_with_the_nearest(key: str, named: str, nearest: str) -> None:
    """No key is ever added: an unknown one is an error with its full path and the nearest valid names."""
    with pytest.raises(UserError, match="unknown key") as caught:
        apply_values(Outer(), {key: 1}, "env")
    assert named in str(caught.value)
    assert nearest in str(caught.value)


def test_a_key_at_the_wrong_place_is_answered_with_its_place() -> None:
    """A name that is nowhere near, but elsewhere in the config, is answered with its whole path, the shallowest one."""
    cfg: dict[str, Any] = {
        "learning_rate": 1e-3,
        "optimizer": {"name": "adam"},
        "student": {"memory": {"learning_rate": 1.0}},
    }
    with pytest.raises(
        UserError, match=r"'distill\.optimizer\.learningrate'\. Did you mean 'distill\.learning_rate'\?"
    ):
        apply_values(cfg, {"optimizer.learningrate": 1}, "distill")
    cfg["optimizer"]["learning_rates"] = 0
    with pytest.raises(UserError, match=r"Did you mean 'learning_rates'\?"):
        apply_values(cfg, {"optimizer.learningrate": 1}, "distill")


def test_a_mapping_that_the_shell_has_split_is_answered_with_quotes() -> None:
    """Of ``key={a:1,b:2}`` without quotes bash makes ``key=a:1 key=b:2``: the error says to quote."""
    cfg = DerivedObsCfg()
    with pytest.raises(UserError, match=r"braces without quotes: type 'obs\.noise=\{body_rates:0\.1, \.\.\.\}' with"):
        apply_values(cfg, {"noise": "body_rates:0.1"}, "obs")
    with pytest.raises(UserError, match=r"must be a number or a mapping \{key: value\}$"):
        apply_values(cfg, {"noise": "little"}, "obs")
    with pytest.raises(UserError, match=r"must be true or false$"):
        apply_values(Outer(), {"flag": "a:1"}, "env")


def test_one_value_for_a_list_is_answered_with_the_list_to_type() -> None:
    """``key=value`` where the key holds a list of such values: the error shows the brackets; no other misfit does."""
    with pytest.raises(UserError, match=r"must be a list, each text, such as env\.groups\.policy=\[height\]$"):
        apply_values(Outer(), {"groups.policy": "height"}, "env")
    with pytest.raises(UserError, match=r"must be a list, each an integer$"):
        apply_values(Outer(), {"sizes": "policy"}, "env")


def test_nested_and_dotted_keys_are_the_same() -> None:
    """``{"inner": {"gain": 2}}`` and ``{"inner.gain": 2}`` do the same."""
    nested, dotted = Outer(), Outer()
    apply_values(nested, {"inner": {"gain": 2, "count": 5}})
    apply_values(dotted, {"inner.gain": 2, "inner.count": 5})
    assert nested == dotted == Outer(inner=Inner(gain=2.0, count=5))


def test_dict_configs_are_closed_too() -> None:
    """A config that is a plain dict accepts its own keys, by the types of its values, and no other."""
    cfg: dict[str, Any] = {"scene": {"num_envs": 4}, "name": "x", "rate": 0.5}
    apply_values(cfg, {"scene.num_envs": 8, "rate": 1}, "env")
    assert cfg == {"scene": {"num_envs": 8}, "name": "x", "rate": 1.0}
    with pytest.raises(UserError, match=r"env\.scene\.num_env'"):
        apply_values(cfg, {"scene.num_env": 8}, "env")
    with pytest.raises(UserError, match=r"env\.scene\.num_envs"):
        apply_values(cfg, {"scene.num_envs": "many"}, "env")


def test_defaults_shared_between_instances_stay_untouched() -> None:
    """Setting a dict's entry in one instance does not reach another that shares the dict."""
    shared = {"policy": ["a"]}
    one, two = Outer(groups=shared), Outer(groups=shared)
    apply_values(one, {"groups.critic": ["b"]})
    assert two.groups == {"policy": ["a"]}
    assert one.groups == {"policy": ["a"], "critic": ["b"]}


def test_configs_in_the_manner_of_isaac_lab() -> None:
    """Plain attributes, sentinels for missing values, and annotations that contradict their default all work."""

    @dataclass
    class ViewerCfg:
        eye: tuple[float, float, float] = (7.5, 7.5, 7.5)

    @dataclass
    class EnvCfg:
        decimation: int = dataclasses.field(default=MISSING)  # as Isaac Lab leaves it
        viewer: ViewerCfg = field(default_factory=ViewerCfg)
        wrong: float = None  # seen in the wild

    cfg = EnvCfg(decimation=MISSING)
    cfg.extra_attribute = 3
    apply_values(cfg, {"decimation": 4, "viewer.eye": [1, 2, 3], "wrong": 2, "extra_attribute": 5}, "env")
    assert (cfg.decimation, cfg.viewer.eye, cfg.wrong) == (4, (1.0, 2.0, 3.0), 2.0)
    assert cfg.extra_attribute == 5
    with pytest.raises(UserError):
        apply_values(cfg, {"extra_attribute": "x"}, "env")


def test_annotations_that_cannot_be_resolved_go_by_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class annotated with names imported for type checkers only is still closed and typed by its defaults."""
    (tmp_path / "foreign_cfg.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Cfg:\n"
        "    odd: NeverImported = 3\n"
        "    plain: int = 1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        cfg = importlib.import_module("foreign_cfg").Cfg()
    finally:
        sys.modules.pop("foreign_cfg", None)
    apply_values(cfg, {"odd": 4, "plain": 2}, "env")
    assert (cfg.odd, cfg.plain) == (4, 2)
    for key, value in (("odd", "x"), ("plain", "x")):
        with pytest.raises(UserError, match=f"env.{key}"):
            apply_values(cfg, {key: value}, "env")


@pytest.mark.parametrize("values", [{"weights": {"a": None}}, {"weights.a": None}, {"groups": {"more": None}}])
def test_an_entry_that_was_not_there_is_not_null(values) -> None:
    """``distill.loss.auxiliary={value: null}``: what a mapping holds must be of its kind."""
    cfg = Outer()
    with pytest.raises(UserError, match=r"^'cfg\.(weights\.a|groups\.more)' is null: it must be a") as refusal:
        apply_values(cfg, values, "cfg")
    assert "\n" not in str(refusal.value)
    assert "a" not in cfg.weights and "more" not in cfg.groups


@dataclass
class Term:
    """A term of a manager: without a function it is none."""

    func: str
    scale: float | None = None
    noise: NoiseCfg | None = None


@dataclass
class NoiseCfg:
    """Noise of one kind."""

    std: float


@dataclass
class Terms:
    """Terms by name, as mjlab has them."""

    rewards: dict[str, Term] = field(default_factory=lambda: {"alive": Term("alive")})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rewards.alve.scale": 2.0}, r"unknown key 'env.rewards.alve'. Did you mean 'alive'\?"),
        ({"rewards.alve": None}, r"unknown key 'env.rewards.alve'. Did you mean 'alive'\?"),
        ({"rewards.alive.noise.std": 0.1}, r"'env.rewards.alive.noise' is null, so 'env.rewards.alive.noise.std'"),
    ],
)
def test_terms_by_name_are_closed(values, message) -> None:
    """A misspelt term is named, not made: it could not be without its function. Null switches off those that are."""
    cfg = Terms()
    with pytest.raises(UserError, match=message):
        apply_values(cfg, values, "env", null=True)
    apply_values(cfg, {"rewards.alive": None}, "env", null=True)
    assert cfg.rewards == {"alive": None}
