"""One student of several tasks: a shared trunk, and for each task an input layer and a head (Rusu et al. 2015, sec. 4).

In the paper all tasks have images of one size, so that only the last layer, the controller, belongs to a task. Here
tasks have observations of different sizes and meanings: padding them to one size would make one input layer weigh
unrelated numbers by the same weights, and one normaliser mix their units. So each task has a normaliser and a first
layer of its own too, and all layers behind the first are shared. A task's own part and the trunk together are an
ordinary student: it acts, is measured, saved, exported and distilled like any other.
"""

from __future__ import annotations

from torch import nn

from foundation.core.errors import UserError
from foundation.students.base import Student, hidden_layers


class MultiTaskStudent(nn.Module):
    """Students of several tasks that share all their hidden layers but the first."""

    def __init__(self) -> None:
        """Begin without tasks."""
        super().__init__()
        self.ids: list[str] = []
        """The tasks in order."""
        self.students = nn.ModuleList()

    def add(self, task_id: str, student: Student) -> Student:
        """Add a task.

        Args:
            task_id: Names the task.
            student: The task's student; its shared layers are replaced by those of the first task's student.

        Returns:
            The student.

        Raises:
            UserError: If it has no layers to share, or they differ from those of the first task's student.
        """
        own = shared_layers(student)
        if not own:
            raise UserError(
                f"student={student.cfg.name} has no hidden layer behind the one that reads observations, for tasks to "
                "share: give it two or more (of an MLP distill.student.hidden_dims=[64,64])"
            )
        if self.ids:
            first = self.students[0]
            assert isinstance(first, Student)
            trunk = shared_layers(first)
            if [_shapes(layer) for layer in own] != [_shapes(layer) for layer in trunk]:
                raise UserError(
                    f"the students of tasks '{self.ids[0]}' and '{task_id}' have layers of other sizes, so that they "
                    "share none: give both the same (distill.student.hidden_dims)"
                )
            for layer, replacement in zip(own, trunk, strict=True):
                _replace(student, layer, replacement)
            vars(student).pop("_remembering", None)  # a cached list of layers with memory, which were just replaced
        self.ids.append(task_id)
        self.students.append(student)
        return student

    @property
    def num_parameters(self) -> int:
        """Parameters of all tasks, shared ones counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def num_shared(self) -> int:
        """Parameters of the trunk."""
        first = self.students[0]
        assert isinstance(first, Student)
        return sum(parameter.numel() for layer in shared_layers(first) for parameter in layer.parameters())


def shared_layers(student: Student) -> list[nn.Module]:
    """Return the hidden layers with weights except the first one, whose size depends on the task's observations."""
    return [layer for layer in hidden_layers(student) if any(True for _ in layer.parameters())][1:]


def _shapes(layer: nn.Module) -> tuple[str, list[tuple[int, ...]]]:
    return type(layer).__name__, [tuple(tensor.shape) for tensor in layer.state_dict().values()]


def _replace(student: Student, layer: nn.Module, replacement: nn.Module) -> None:
    for parent in list(student.modules()):
        for name, child in list(parent.named_children()):
            if child is layer:
                setattr(parent, name, replacement)
