"""The tasks by name."""

import difflib

from mlxreflect.errors import UserError
from mlxreflect.tasks import arithmetic, countdown, gsm8k, jsonl
from mlxreflect.tasks.base import Task

TASKS: dict[str, Task] = {
    task.name: task for task in (countdown.TASK, arithmetic.TASK, gsm8k.TASK, jsonl.TASK)
}


def get_task(name: str) -> Task:
    """The task of a name. Raises UserError with the names there are."""
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name, TASKS, 1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "set task.name to one of the tasks"
    raise UserError(f"no task {name!r}; the tasks are: {', '.join(TASKS)}", hint)
