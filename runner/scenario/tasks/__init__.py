"""The tasks there are: each a file, called as it is."""

from collections.abc import Mapping
from typing import Any

from fedsweep.parts.family import Kinds
from fedsweep.parts.registry import is_reference
from fedsweep.scenario.task import Task


class Tasks(Kinds[Task]):
    """Tasks by name. ``dataset.name`` is what one's data are called, so ``task`` says which."""

    key = "task"

    def find(self, given: str) -> str:
        """Return a task's name.

        Raises
        ------
        ValueError
            There is none of this name.
        """
        if is_reference(given):
            raise ValueError(
                f"dataset.task={given}: a task is one of {', '.join(self)}; data of your own come "
                "in by dataset=FILE.py"
            )
        return super().find(given)

    def settings_from(self, values: Mapping[str, Any]) -> Task:
        """Return values as the settings of the task that they name; they know their own origin."""
        name = self.find(str(values[self.key]))
        made: Task = self.settings(name).model_validate({**values, self.key: name})
        return made


TASKS = Tasks(
    kind="task",
    package=__name__,
    entries="fedsweep.tasks",
    default="images",
    home="TASKS",
    base=Task,
    expected="Task",
)

task_of = TASKS.make
