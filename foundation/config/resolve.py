"""Resolve YAML files, overrides and flags to one checked :class:`DistillationCfg`.

Layers, each beating those before it: the defaults (or the run that is resumed), the experiment's file, the group files
that were typed, the keys that were typed, the flags.
"""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from foundation.config.distillation_cfg import DistillationCfg, StudentCfg
from foundation.config.interpolation import has_interpolation, interpolate
from foundation.config.overrides import Assignment, Overrides
from foundation.config.plain import to_plain
from foundation.config.presets import is_path, own_preset, read_preset
from foundation.config.validate import label, validate
from foundation.config.values import apply_values, key_names
from foundation.core.errors import UserError

logger = logging.getLogger(__name__)

StudentCfgClass = Callable[[str], type[StudentCfg]]
"""Gives the config class of a student by its name; raises :class:`UserError` for an unknown one."""

_BY_NAME = ("student", "loss")
"""Groups whose choices need no file: any student and any loss may be chosen by its own name."""
CHOSEN = ("student", "loss", "schedule", "dataset")
"""Groups that every run has a choice of."""
DEFAULT = "default"
_TYPED = "typed"
_RESUMED = "the resumed run"
_ONLY_CHOICES = "foundation_only_choices"
_NOTHING = "foundation_nothing"
_OWN = "foundation_own"
_SCHEDULE_KEYS = ("collection.beta", "epoch_teacher_forcing", "collection.teacher_student_mix")


class Layer(NamedTuple):
    """Values of one origin; they beat those of the layers before."""

    origin: str
    """``default``, ``experiment=fast``, ``typed``, ``the resumed run``."""
    values: dict[str, Any]
    """Nested values; a file's may have ``env`` and ``agent`` beside the fields of the distillation config."""


@dataclass(frozen=True)
class Choice:
    """Which file or name of a group is in force, and why."""

    name: str
    chosen: str
    """Origin of the choice, and of changes to its keys: a flag, a file, the default."""


@dataclass
class Resolved:
    """A distillation config, and what its files set in the other two configs."""

    cfg: DistillationCfg
    env: dict[str, Any] = field(default_factory=dict)
    """Values for the environment's config, from ``env:`` in a ``task/`` or ``experiment/`` file."""
    agent: dict[str, Any] = field(default_factory=dict)
    """Values for the agent's config, from ``agent:`` in such a file."""
    choices: dict[str, Choice] = field(default_factory=dict)
    """Group -> what is in force."""

    def configure(self, env_cfg: object, agent_cfg: object, overrides: Overrides) -> None:
        """Apply the files' values, then the command line's, to the simulator's configs in place."""
        known = {"distill": to_plain(self.cfg)}
        for scope, cfg, values in (("env", env_cfg, self.env), ("agent", agent_cfg, self.agent)):
            if has_interpolation(values):
                known |= {"env": to_plain(env_cfg), "agent": to_plain(agent_cfg)}
            apply_values(cfg, interpolate(values, known, f"{scope}: in a file of configs/"), scope, null=True)
        overrides.configure(env_cfg, agent_cfg, self.cfg)

    def choices_line(self) -> str:
        """Name what was chosen and by whom, in one line."""
        return ", ".join(f"{group} {choice.name} ({choice.chosen})" for group, choice in self.choices.items())


def config_folder() -> Path:
    """Return the folder of the YAML files, in a clone or in an installed package."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package.parent / "configs", package / "configs"):
        if (folder / "distillation.yaml").is_file():
            return folder
    raise UserError(f"no configs/distillation.yaml beside {package} or in it: install the package again")


def choices(group: str) -> list[str]:
    """List the files of a group of ``configs/``."""
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


def compose(groups: Mapping[str, str | None], *, defaults: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Let Hydra put files of ``configs/`` together. Writes nothing.

    Args:
        groups: Group -> name of a file of ``configs/`` or of an own one (see :mod:`foundation.config.presets`), or None
            for no file at all, whatever another file says.
        defaults: Begin with ``configs/distillation.yaml`` and the files that it chooses. Otherwise nothing is there but
            what the chosen files say.

    Returns:
        Plain nested values, interpolations as they were written, and the files in force by their group.
    """
    values, in_force, _ = _composed(groups, defaults)
    return values, in_force


def experiment_sweep(experiment: str) -> dict[str, str]:
    """Return what an experiment's file sweeps over, key -> values, from Hydra's own ``hydra.sweeper.params``."""
    return _composed({"experiment": experiment}, False)[2]


def _composed(
    groups: Mapping[str, str | None], defaults: bool
) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Return what :func:`compose` does, and the parameters of the sweeper."""
    chosen = tuple(groups.items())
    if any(name and name not in choices(group) for group, name in chosen):
        return _composed_anew(chosen, defaults)  # an own file: it may change from one call to the next
    return copy.deepcopy(_composed_before(chosen, defaults, _stamps(config_folder())))


def _stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return path, time of the last change and size of every file of ``configs/``."""
    files = ((path, path.stat()) for path in sorted(folder.rglob("*.yaml")))
    return tuple((str(path), about.st_mtime_ns, about.st_size) for path, about in files)


@functools.lru_cache(maxsize=256)
def _composed_before(
    chosen: tuple[tuple[str, str | None], ...], defaults: bool, stamps: tuple[tuple[str, int, int], ...]
) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Do so once for the same choices of the same files: Hydra takes 50 ms, and a config is put together four times."""
    return _composed_anew(chosen, defaults)


def _composed_anew(
    chosen: tuple[tuple[str, str | None], ...], defaults: bool
) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """Let Hydra read the files."""
    store = ConfigStore.instance()
    every = (*CHOSEN, "task", "experiment")
    for group in every:  # an empty file: the one choice of nothing that also beats an experiment's own
        store.store(_NOTHING, {}, group=group, package="_global_")
    store.store(_ONLY_CHOICES, {"defaults": [{group: _NOTHING} for group in every]})
    own = {group: name for group, name in chosen if name and name not in choices(group)}
    for group, name in own.items():  # Hydra knows it by a name that any file can have
        values, package = read_preset(group, own_preset(group, name, choices(group)))
        store.store(_OWN, values, group=group, package=package)
    typed = [f"{group}={_OWN if group in own else name or _NOTHING}" for group, name in chosen]
    # Hydra keeps its state in a singleton. A command that runs as a Hydra application has set it, and its launcher
    # still needs it after this: it is put back below, whatever happens in between.
    application = GlobalHydra.instance().hydra  # the command itself is one, and there can be one at a time
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
            primary = "distillation" if defaults else _ONLY_CHOICES
            found = hydra_compose(primary, overrides=typed, return_hydra_config=True)
            taken = {group: str(found.hydra.runtime.choices.get(group)) for group in every}
            OmegaConf.set_struct(found, False)
            swept = OmegaConf.to_container(found.hydra.sweeper.params or OmegaConf.create({}), resolve=False)
            del found["hydra"]
            values = OmegaConf.to_container(found, resolve=False)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"configs: {' '.join(str(error).split())}") from None
    finally:
        if application is not None:
            GlobalHydra.instance().initialize(application)
    assert isinstance(values, dict) and isinstance(swept, dict)
    taken |= own
    in_force = {group: name for group, name in taken.items() if name not in ("None", _NOTHING)}
    params = {str(key): str(value) for key, value in swept.items()}
    return {str(key): value for key, value in values.items()}, in_force, params


def resolve(
    overrides: Overrides,
    flags: Mapping[str, Any],
    *,
    student_cfg_class: StudentCfgClass,
    loss_names: Iterable[str] | None = None,
    base: Mapping[str, Any] | None = None,
) -> Resolved:
    """Put a run's config together: defaults, then the experiment's file, then what was typed, flags last.

    Args:
        overrides: What was typed as ``key=value``.
        flags: Dotted field -> value, for the flags that were typed.
        student_cfg_class: The students' registry, which this layer does not know.
        loss_names: Valid losses. None leaves the loss's name unchecked.
        base: Values of a run that is resumed; they take the place of the defaults.

    Raises:
        UserError: For an unknown key, group or name, a wrong type, or a value out of range.
    """
    stack = _Stack(overrides, flags, base)
    # Which student is in force decides which fields its config has, so that the choice is settled before any value is.
    cfg = DistillationCfg(student=student_cfg_class(stack.student)())
    stack.leave_out_foreign(key_names(cfg.student))
    stack.interpolate(cfg)
    env = {}
    agent = {}
    for layer in stack.layers:
        values = dict(layer.values)
        _merge(env, values.pop("env", None) or {})
        _merge(agent, values.pop("agent", None) or {})
        try:
            apply_values(cfg, values, "distill" if layer.origin == _TYPED else "configs")
        except UserError as error:
            raise UserError(_by_flag(str(error), flags)) from None
    stack.check_one_driver(cfg)
    validate(cfg, loss_names)
    return Resolved(cfg, env, agent, stack.choices(cfg))


class _Stack:
    """The layers of one command line, lowest first."""

    def __init__(self, overrides: Overrides, flags: Mapping[str, Any], base: Mapping[str, Any] | None):
        self.files, self.named = _split_groups(overrides)
        self.typed_groups = {group: name for group, name in self.files.items() if group != "experiment" and name}
        self.typed_groups |= self.named
        self.saved_choices: dict[str, Any] = {}
        self.defaults: dict[str, str] = {}
        experiment = self._experiment()
        self.layers = [self._lowest(base), *experiment, *self._typed_files(), *self._typed_keys(overrides, flags)]

    @property
    def student(self) -> str:
        """The name of the student in force."""
        names = [_mapping(layer.values.get("student")).get("name") for layer in self.layers]
        return str(([StudentCfg().name] + [name for name in names if name])[-1])

    @property
    def loss(self) -> str | None:
        """The name of the loss in force; None where no layer names one."""
        names = [_mapping(layer.values.get("loss")).get("name") for layer in self.layers]
        return next((name for name in reversed(names) if name), None)

    def _experiment(self) -> list[Layer]:
        """The values of the experiment's file, with the group files that it chooses in its turn."""
        self.chosen_by_experiment: dict[str, str] = {}
        self.agreed: set[str] = set()
        name = self.files.get("experiment")
        if name is None:
            return []
        # Composed to see which group files it chooses, and where something typed replaces one, once more with those
        # that are left. A replaced student's settings would otherwise stay in the values of the experiment.
        values, in_force = compose({"experiment": name}, defaults=False)
        del in_force["experiment"]
        chosen = dict(in_force)
        for group in _BY_NAME:  # a name in its body is a choice too
            chosen[group] = _mapping(values.get(group)).get("name") or chosen.get(group, "")
            if chosen[group] and chosen[group] == self.typed_groups.get(group):
                self.agreed.add(group)  # what was typed is what it says: its settings of that choice stay
        self.chosen_by_experiment = {
            group: choice
            for group, choice in chosen.items()
            if choice and (group in self.agreed or group not in self.typed_groups)
        }
        files = {group: choice for group, choice in self.chosen_by_experiment.items() if choice in choices(group)}
        others = dict.fromkeys(group for group in self.typed_groups if group not in self.agreed)
        added = {group: choice for group, choice in files.items() if in_force.get(group) != choice}
        if others or not all(_sets_the_same(group, choice, values) for group, choice in added.items()):
            values, _ = compose({"experiment": name, **others, **files}, defaults=False)
        return [Layer(self._experiment_origin(), values)]

    def _experiment_origin(self) -> str:
        return f"experiment={self.files['experiment']}"

    def _lowest(self, base: Mapping[str, Any] | None) -> Layer:
        """The values of the defaults, or of a resumed run, for what is not chosen anew."""
        if base is None:
            replaced = dict.fromkeys([*self.typed_groups, *self.chosen_by_experiment])
            values, self.defaults = compose(replaced, defaults=True)
            return Layer(DEFAULT, values)
        values = copy.deepcopy(dict(base))
        self.saved_choices = values.pop("choices", None) or {}
        student = self.typed_groups.get("student", self.chosen_by_experiment.get("student"))
        if student not in (None, _mapping(values.get("student")).get("name")):
            del values["student"]  # another student has other fields
        return Layer(_RESUMED, values)

    def _typed_files(self) -> list[Layer]:
        typed = {group: name for group, name in self.typed_groups.items() if group not in self.agreed}
        files = {group: name for group, name in typed.items() if group not in self.named}
        values = compose(files, defaults=False)[0] if files else {}
        for group, name in typed.items():
            if group in self.named:
                values[group] = name if group == "task" else {"name": name}
        return [Layer(_TYPED, values)] if values else []

    def _typed_keys(self, overrides: Overrides, flags: Mapping[str, Any]) -> list[Layer]:
        items = own_items(overrides)
        self.typed_keys = {item.path for item in items} | set(flags)
        keys = [Layer(_TYPED, _nested(item.path, item.value)) for item in items if item.path != "student.name"]
        return keys + [Layer(_TYPED, _nested(path, value)) for path, value in flags.items()]

    def leave_out_foreign(self, student_fields: list[str]) -> None:
        """Drop, with a log line, what files set for another student or loss than the one that was typed."""
        for layer in self.layers:
            if layer.origin == _TYPED:
                continue  # what was typed and does not fit is a mistake, and an error where its key is checked
            student = _mapping(layer.values.get("student"))
            for name in [name for name in student if name not in student_fields]:
                if "student" in self.typed_groups:
                    del student[name]
                    self._say_left_out(layer, f"student.{name}", f"is no setting of student={self.student}")
            auxiliary = _mapping(_mapping(layer.values.get("loss")).get("auxiliary"))
            loss = self.loss if "loss" in self.typed_groups else None
            if loss in auxiliary:
                del auxiliary[loss]
                self._say_left_out(layer, f"loss.auxiliary.{loss}", "is the main loss that was typed")

    def check_one_driver(self, cfg: DistillationCfg) -> None:
        """Let a typed ``teacher_student_mix`` or ``beta`` stand against the other one of a file."""
        collection = cfg.collection
        if collection.beta is not None and "epoch_teacher_forcing" in self.typed_keys:
            logger.warning(
                "--epoch_teacher_forcing %d has no effect beside collection.beta (%s); schedule=dagger unsets it",
                cfg.epoch_teacher_forcing,
                collection.beta.kind,
            )
        if not collection.teacher_student_mix or collection.beta is None:
            return
        origins = self.origins()
        mix, beta = (origins.get(f"collection.{name}", DEFAULT) for name in ("teacher_student_mix", "beta"))
        if mix == _TYPED != beta:
            logger.info("--teacher_student_mix beats the collection.beta of %s", beta)
            collection.beta = None
        elif beta == _TYPED != mix:
            logger.info("the typed collection.beta beats the collection.teacher_student_mix of %s", mix)
            collection.teacher_student_mix = 0

    @staticmethod
    def _say_left_out(layer: Layer, key: str, why: str) -> None:
        logger.info("%s of %s %s: left out", key, layer.origin, why)

    def interpolate(self, cfg: DistillationCfg) -> None:
        """Put in what values refer to; those of a resumed run are final."""
        if not any(has_interpolation(layer.values) for layer in self.layers if layer.origin != _RESUMED):
            return
        final = to_plain(cfg)
        for layer in self.layers:
            _merge(final, copy.deepcopy({k: v for k, v in layer.values.items() if k not in ("env", "agent")}))
        known = final | {"distill": final}
        for index, layer in enumerate(self.layers):
            if layer.origin != _RESUMED:
                own = {k: v for k, v in layer.values.items() if k not in ("env", "agent")}
                kept = {k: v for k, v in layer.values.items() if k in ("env", "agent")}
                self.layers[index] = Layer(layer.origin, interpolate(own, known, f"'{_written(own)}'") | kept)

    def origins(self) -> dict[str, str]:
        """Return the origin of the last value of each key, for keys of every depth."""
        found: dict[str, str] = {}
        for layer in self.layers:
            found |= dict.fromkeys(_paths(layer.values), layer.origin)
        return found

    def choices(self, cfg: DistillationCfg) -> dict[str, Choice]:
        """Return the choice in force of each group, with its origin."""
        origins = self.origins()
        found = {}
        for group in CHOSEN:
            name, chosen = self._choice(group, cfg, origins)
            inside = [path for path in origins if path.startswith(f"{group}.") and path != f"{group}.name"]
            leaves = [path for path in inside if not any(other.startswith(f"{path}.") for other in inside)]
            changed: dict[str, list[str]] = {}
            for path in _SCHEDULE_KEYS if group == "schedule" else leaves:
                origin = origins.get(path, DEFAULT)
                if origin not in (DEFAULT, _RESUMED) and origin not in chosen:
                    changed.setdefault(origin, []).append(path.removeprefix(f"{group}.").removeprefix("collection."))
            notes = [f"{' and '.join(names)} {_by(origin)}" for origin, names in changed.items()]
            found[group] = Choice(name, ", ".join([chosen, *notes]))
        return found

    def _choice(self, group: str, cfg: DistillationCfg, origins: Mapping[str, str]) -> tuple[str, str]:
        """Return the choice in force of a group, and its origin."""
        beta = cfg.collection.beta
        beta_origin = origins.get("collection.beta", DEFAULT)
        if group in self.agreed:
            return self.typed_groups[group], f"{_TYPED}, and in {self._experiment_origin()}"
        if group in self.typed_groups:
            return self.typed_groups[group], _TYPED
        if f"{group}.name" in self.typed_keys:
            return str(getattr(cfg, group).name), _TYPED
        if group in self.chosen_by_experiment:
            return self.chosen_by_experiment[group], self._experiment_origin()
        if group == "schedule" and beta is not None and beta_origin not in (DEFAULT, _RESUMED):
            return beta.kind, beta_origin
        own_name = getattr(getattr(cfg, group, None), "name", None)
        if self.layers[0].origin == _RESUMED:
            return str(own_name or (self.saved_choices.get(group) or {}).get("name", "as it was")), _RESUMED
        return str(own_name or self.defaults.get(group, "none")), DEFAULT


def resolve_distillation_cfg(overrides: Overrides, flags: Mapping[str, Any], **options: Any) -> DistillationCfg:
    """Return the distillation config alone (see :func:`resolve`)."""
    return resolve(overrides, flags, **options).cfg


def _sets_the_same(group: str, name: str, values: Mapping[str, Any]) -> bool:
    """Return whether an experiment's values replace every value of a group's file, so that the file adds nothing."""
    file, package = read_preset(group, config_folder() / group / f"{name}.yaml")
    return package == group and file.keys() <= _mapping(values.get(group)).keys()


def _split_groups(overrides: Overrides) -> tuple[dict[str, str | None], dict[str, str]]:
    """Separate choices that have a file from names of a student, a loss or a task."""
    typed = dict(overrides.groups)
    for item in own_items(overrides):
        if item.path == "student.name":  # the name decides which other fields there are: treat it as the choice
            typed["student"] = str(item.value)
    groups: dict[str, str | None] = {}
    named: dict[str, str] = {}
    for group, name in typed.items():
        valid = choices(group)
        if name in valid or _is_own(group, name):
            groups[group] = name
        elif group == "task":
            named["task"] = name
        elif group in _BY_NAME:
            groups[group] = None
            named[group] = name
    return groups, named


def _is_own(group: str, name: str) -> bool:
    """Return whether a choice is a file of the user's own, and refuse one that is not there."""
    if group in (*_BY_NAME, "task") and not is_path(group, name):
        try:  # a YAML of that name; otherwise it is a student, a loss or a task, which has its own errors
            own_preset(group, name, ())
        except UserError:
            return False
        return True
    own_preset(group, name, choices(group))
    return True


def own_items(overrides: Overrides) -> list[Assignment]:
    """Return the typed keys of the distillation config, with and without ``distill.``."""
    names = [own.name for own in fields(DistillationCfg)]
    bare = [item for item in overrides.bare if item.path.partition(".")[0] in names]
    return [*overrides.scoped.get("distill", []), *bare]


def _by_flag(message: str, flags: Mapping[str, Any]) -> str:
    """Name a key as it was typed: by its flag, if that was."""
    for path in flags:
        message = message.replace(f"'distill.{path}'", label(path))
    return message


def _by(origin: str) -> str:
    return _TYPED if origin == _TYPED else f"by {origin}"


def _mapping(value: Any) -> dict[str, Any]:
    """Return a value of a file if it is a mapping; what is none is refused where its type is checked."""
    return value if isinstance(value, dict) else {}


def _nested(path: str, value: Any) -> dict[str, Any]:
    """Return ``{"a": {"b": value}}`` for ``a.b``."""
    for name in reversed(path.split(".")):
        value = {name: value}
    return value


def _written(values: object) -> str:
    """Write nested values of one key as ``a.b=value``."""
    names = []
    while isinstance(values, Mapping) and len(values) == 1:
        (name, values), *_ = values.items()
        names.append(str(name))
    return f"{'.'.join(names)}={values}"


def _paths(values: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")


def _merge(base: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Write nested ``values`` over ``base``."""
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value
    return base
