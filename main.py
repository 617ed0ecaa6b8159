"""Trains, evaluates and uses VSE∞ models: see README.md.

    python main.py --config=configs/openmoji.py --workdir=runs/demo [--mode=train]

--config.FIELD=VALUE sets any field of configs/common.py. Exit codes: 0 done, 1 bad
input or another process lost (one line on stderr; its traceback with --verbosity=1), 75
preempted (run the same command again).
"""

import importlib
import os
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from configs import common
from vse_jax.base import command_line as cli
from vse_jax.base.errors import InputError, check_choice
from vse_jax.devices import preemption


class Mode(NamedTuple):
    function: str  # module:name, called with the config and the workdir
    devices: bool = True  # it computes, so that jax and a workdir are needed
    processes: bool = False  # several may share the work


MODES = {
    "retrieval": {
        "train": Mode("vse_jax.commands.train:train", processes=True),
        "eval": Mode("vse_jax.commands.evaluate:evaluate", processes=True),
        "embed": Mode("vse_jax.commands.embed:embed", processes=True),
        "plot": Mode("vse_jax.commands.plot:plot"),
        "prepare": Mode("vse_jax.commands.prepare:prepare", devices=False),
        "export": Mode("vse_jax.commands.export:export", devices=False),
        "build_vocab": Mode("vse_jax.commands.build_vocab:build_vocab", devices=False),
    },
    "gpo_synthetic": {
        "train": Mode("studies.gpo_synthetic:run_study"),
        "plot": Mode("studies.plots:plot"),
    },
    "pooling_study": {"plot": Mode("studies.plots:plot")},
}

_CONFIG = flags.DEFINE_string("config", None, "FILE.py[:VARIANT], or a run's JSON.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_MODE = flags.DEFINE_string("mode", "train", ", ".join(MODES["retrieval"]))
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Of this process, from 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run.")


def run(overrides: list[str]) -> None:
    """Does what --mode says."""
    home, folder = Path(__file__).parent, _WORKDIR.value
    config = cli.full_config(_CONFIG.value, folder, overrides, common.base, home)
    of_task = f"--mode for config.task={config.task}"
    check_choice(of_task, _MODE.value, tuple(MODES[config.task]))
    mode = MODES[config.task][_MODE.value]
    module, function = mode.function.split(":")
    if not mode.devices:
        return getattr(importlib.import_module(module), function)(config)
    if not folder:
        raise InputError(f"--workdir: needed by --mode={_MODE.value}")
    if _MODE.value == "train":
        preemption.listen()
    # Not above: a wrong field is found without the seconds that importing jax takes.
    from vse_jax.devices import runtime  # noqa: PLC0415

    connection = (_COORDINATOR.value, _PROCESS_ID.value, _NUM_PROCESSES.value)
    with runtime.started(config, _MODE.value, connection, alone=not mode.processes):
        getattr(importlib.import_module(module), function)(config, Path(folder))


if __name__ == "__main__":
    # One seed, one process: what XLA's warnings say here is for its developers.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(cli.program(run), flags_parser=cli.parse)
