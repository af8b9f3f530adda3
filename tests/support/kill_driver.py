"""A real `mlxreflect` process that kills itself with SIGKILL at a named point, or fails there.

usage: kill_driver.py POINT NTH ARGUMENTS… — POINT is one of those below, NTH counts its calls.
"""

import os
import signal
import sys
from pathlib import Path

from mlx.optimizers import AdamW

from mlxreflect.cli import main as cli
from mlxreflect.core import journal as commits
from mlxreflect.evaluation import evaluate, judge
from mlxreflect.methods.r3 import R3
from mlxreflect.methods.reflectevo import ReflectEvo
from mlxreflect.runs import arms, figures, fit, folder
from mlxreflect.runs import run as loop
from mlxreflect.train.references import References

DRIVER = str(Path(__file__))  # the file to run


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def stop_gpu(*args, **kwargs):
    """What MLX raises where macOS ends the GPU's work, to keep the display going."""
    raise RuntimeError(
        "[METAL] Command buffer execution failed: Impacting Interactivity "
        "(0000000e:kIOGPUCommandBufferCallbackErrorImpactingInteractivity)."
    )


def torn_append(path, rows):
    """Half of the rows' bytes reach the disk, the last line torn."""
    data = "".join(commits.dump_line(row) for row in rows).encode()
    if data:
        with path.open("ab") as out:
            out.write(data[: len(data) // 2 + 1])
        die()
    return path.stat().st_size if path.exists() else 0


# point → (object, attribute, when): "before" or "after" the call, or what to call instead of it.
# Of `mlxreflect run`:
POINTS = {
    "evaluated a chunk": (evaluate, "append_rows", "after"),
    "evaluated half a chunk": (evaluate, "append_rows", torn_append),
    "judged a chunk": (judge, "append_rows", "after"),
    "judged half a chunk": (judge, "append_rows", torn_append),
    "critiqued": (R3, "critique", "after"),
    "took a training step": (AdamW, "update", "after"),
    "verified": (R3, "verify", "after"),
    "appended half a journal": (commits, "append_rows", torn_append),
    "wrote half a commit": (loop, "save_trainer", "before"),
    "before a commit's rename": (Path, "rename", "before"),
    "after a commit's rename": (Path, "rename", "after"),
    "wrote the adapter": (loop, "finish_adapter", "after"),
    "before the summary": (figures, "summarise_run", "before"),
}
# Of `mlxreflect train`:
TRAINING = {
    "before it is a job": (folder, "write_atomic", "after"),
    "scored some of the reference": (References, "put", "after"),
    "took a training step": (AdamW, "update", "after"),
    "appended half a journal": (commits, "append_rows", torn_append),
    "appended a journal": (commits, "append_rows", "after"),
    "wrote half a checkpoint": (fit, "save_trainer", "before"),
    "before a commit's rename": (Path, "rename", "before"),
    "after a commit's rename": (Path, "rename", "after"),
    "while finishing": (fit, "replace_folder", "after"),
    "before a training's summary": (fit.FitLoop, "summary", "before"),
}
# Of `mlxreflect run` with ReflectEvo:
REFLECTING = {
    "trained": (ReflectEvo, "train", "after"),
    "wrote an adapter": (arms, "replace_folder", "after"),
    "evaluated half a chunk of retries": (evaluate, "append_rows", torn_append),
}
# Of `mlxreflect run` that looks at dev problems:
WATCHING = {
    "looked": (arms.Watch, "look", "after"),
    "before the best is kept": (arms, "write_adapter", "before"),
    "chose the best": (arms.Watch, "choose", "after"),
    "evaluated half a chunk of dev problems": (evaluate, "append_rows", torn_append),
}
# Of `mlxreflect run` on a Mac's GPU:
STOPPING = {
    "the GPU is stopped in training": (AdamW, "update", stop_gpu),
    "the GPU is stopped in an evaluation": (evaluate, "append_rows", stop_gpu),
}


def arm(point, nth):
    owner, name, when = (POINTS | TRAINING | REFLECTING | WATCHING | STOPPING)[point]
    original, count = getattr(owner, name), 0

    def armed(*args, **kwargs):
        nonlocal count
        count += 1
        if count < nth:
            return original(*args, **kwargs)
        if when == "before":
            die()
        if when == "after":
            original(*args, **kwargs)
            die()
        return when(*args, **kwargs)

    setattr(owner, name, armed)


if __name__ == "__main__":
    arm(sys.argv[1], int(sys.argv[2]))
    sys.argv = ["mlxreflect", *sys.argv[3:]]
    cli.main()
