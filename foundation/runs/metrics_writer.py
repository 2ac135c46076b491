"""Writers of scalars: TensorBoard always, and Weights & Biases or Neptune beside it on request."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.config.plain import to_plain
from foundation.core.errors import UserError, suggest


class MetricsWriter(ABC):
    """A sink of scalars."""

    @abstractmethod
    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Record values of several tags at one step (the epoch, or the iteration)."""

    def add_hparams(self, hparams: Mapping[str, bool | float | str], metrics: Mapping[str, float]) -> None:
        """Record, once, what the run was made with, and the tags of the figures that it is judged by.

        A sink that takes the whole configuration at its beginning needs nothing here.
        """
        return

    def flush(self) -> None:
        """Hand over what is buffered."""
        return

    def close(self) -> None:
        """Finish. Nothing may be added afterwards."""
        return


class TensorBoardWriter(MetricsWriter):
    """Event files for TensorBoard.

    Args:
        log_dir: Folder of the run.
        purge_step: First step that will be written (again): TensorBoard hides what an interrupted run wrote from
            there on, so that a resumed run shows one curve.
    """

    def __init__(self, log_dir: Path | str, purge_step: int | None = None):
        try:
            from torch.utils.tensorboard.writer import SummaryWriter  # 0.4 s, for the commands that log scalars alone

            self._writer = SummaryWriter(str(log_dir), purge_step=purge_step)
        except OSError as error:
            raise _cannot_write(log_dir, error) from None
        self._log_dir = log_dir

    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Record values of several tags at one step."""
        try:
            for tag, value in scalars.items():
                self._writer.add_scalar(tag, float(value), step)
        except OSError as error:
            raise _cannot_write(self._log_dir, error) from None

    def add_hparams(self, hparams: Mapping[str, bool | float | str], metrics: Mapping[str, float]) -> None:
        """Record the run's line of TensorBoard's HParams table; the figures themselves are scalars of the same tags."""
        from torch.utils.tensorboard.summary import hparams as summaries  # with the writer, see above

        try:
            for summary in summaries(dict(hparams), dict(metrics)):
                self._writer._get_file_writer().add_summary(summary)
        except OSError as error:
            raise _cannot_write(self._log_dir, error) from None

    def flush(self) -> None:
        """Write buffered events to disk."""
        try:
            self._writer.flush()
        except OSError as error:
            raise _cannot_write(self._log_dir, error) from None

    def close(self) -> None:
        """Write what is left and close the file."""
        try:
            self._writer.close()
        except OSError as error:
            raise _cannot_write(self._log_dir, error) from None


class WandbWriter(MetricsWriter):
    """Scalars to Weights & Biases."""

    def __init__(self, log_dir: Path | str, project: str, cfg: object):
        wandb = _import("wandb")
        self._run = wandb.init(project=project, name=Path(log_dir).name, dir=str(log_dir), config=to_plain(cfg))

    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Record values of several tags at one step."""
        self._run.log({tag: float(value) for tag, value in scalars.items()}, step=step)

    def close(self) -> None:
        """Finish the run on the server."""
        self._run.finish()


class NeptuneWriter(MetricsWriter):
    """Scalars to Neptune."""

    def __init__(self, log_dir: Path | str, project: str, cfg: object):
        neptune = _import("neptune")
        self._run = neptune.init_run(project=project, name=Path(log_dir).name)
        self._run["config"] = _as_text(to_plain(cfg))

    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Record values of several tags at one step."""
        for tag, value in scalars.items():
            self._run[tag].append(float(value), step=step)

    def close(self) -> None:
        """Finish the run on the server."""
        self._run.stop()


class Writers(MetricsWriter):
    """Several sinks as one."""

    def __init__(self, writers: list[MetricsWriter]):
        self.writers = writers

    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Record values of several tags at one step, in every sink."""
        for writer in self.writers:
            writer.add_scalars(scalars, step)

    def add_hparams(self, hparams: Mapping[str, bool | float | str], metrics: Mapping[str, float]) -> None:
        """Record what the run was made with, in every sink."""
        for writer in self.writers:
            writer.add_hparams(hparams, metrics)

    def flush(self) -> None:
        """Flush every sink."""
        for writer in self.writers:
            writer.flush()

    def close(self) -> None:
        """Close every sink."""
        for writer in self.writers:
            writer.close()


class PrefixedWriter(MetricsWriter):
    """A part of another sink, whose tags all begin alike; it is closed by whoever closes that.

    Args:
        writer: The whole sink.
        prefix: Begins each tag.
    """

    def __init__(self, writer: MetricsWriter, prefix: str):
        self.writer = writer
        self.prefix = prefix

    def add_scalars(self, scalars: Mapping[str, float], step: int) -> None:
        """Record values of several tags at one step."""
        self.writer.add_scalars({f"{self.prefix}{tag}": value for tag, value in scalars.items()}, step)

    def flush(self) -> None:
        """Flush the whole sink."""
        self.writer.flush()


_REMOTE = {"wandb": WandbWriter, "neptune": NeptuneWriter}


def check_logger(logger: str) -> None:
    """Check, before anything is written, that a logger is known and installed.

    Raises:
        UserError: If it is not.
    """
    if logger not in ("tensorboard", *_REMOTE):
        raise UserError(f"--logger is {logger!r}. {suggest(logger, ['tensorboard', *_REMOTE])}")
    if logger in _REMOTE:
        _import(logger)


def make_writer(
    logger: str, log_dir: Path | str, project: str | None = None, cfg: object = None, purge_step: int | None = None
) -> MetricsWriter:
    """Make the sink of a run's scalars.

    Args:
        logger: tensorboard | wandb | neptune. TensorBoard's event files are written in any case.
        log_dir: Folder of the run.
        project: Project name for wandb and neptune. None: ``"foundation"``.
        cfg: What to store as the run's configuration there.
        purge_step: First step of a resumed run.

    Raises:
        UserError: If the logger is unknown or its package is not installed, or the folder cannot be written.
    """
    check_logger(logger)
    writers: list[MetricsWriter] = [TensorBoardWriter(log_dir, purge_step)]
    if logger in _REMOTE:
        writers.append(_REMOTE[logger](log_dir, project or "foundation", cfg))
    return Writers(writers)


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"--logger {name} needs the package {name}: pip install {name}") from None


def _as_text(value: object) -> Any:
    """Neptune takes nested dicts of scalars and text, but neither lists nor None."""
    if isinstance(value, dict):
        return {str(k): _as_text(v) for k, v in value.items()}
    return value if isinstance(value, (bool, int, float, str)) else str(value)


def _cannot_write(log_dir: Path | str, error: OSError) -> UserError:
    return UserError(f"cannot write logs to {log_dir}: {error.strerror or error}")
