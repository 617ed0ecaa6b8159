"""Trains, evaluates and uses VSE∞ models: see README.md.

    python main.py --config=configs/openmoji.py --workdir=runs/demo [--mode=train]
    python main.py --workdir=runs/demo --mode=eval --config.eval.split=dev

Any field of the config can be set: --config.batch_size=64, --config.data.root=DIR; they
are listed in configs/common.py. Several processes and preemption: docs/distributed.md.
Exit codes: 0 done, 1 bad input or another process lost (one line on stderr; its
traceback with --verbosity=1), 75 preempted (run the same command again).
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
    ("retrieval", "train"): Mode("vse_jax.commands.train:train", processes=True),
    ("retrieval", "eval"): Mode("vse_jax.commands.evaluate:evaluate", processes=True),
    ("retrieval", "embed"): Mode("vse_jax.commands.embed:embed", processes=True),
    ("retrieval", "plot"): Mode("vse_jax.commands.plot:plot"),
    ("retrieval", "prepare"): Mode("vse_jax.commands.prepare:prepare", devices=False),
    ("retrieval", "export"): Mode("vse_jax.commands.export:export", devices=False),
    ("retrieval", "build_vocab"): Mode(
        "vse_jax.commands.build_vocab:build_vocab", devices=False
    ),
    ("gpo_synthetic", "train"): Mode("studies.gpo_synthetic:run_study"),
    ("gpo_synthetic", "plot"): Mode("studies.plots:plot"),
    ("pooling_study", "plot"): Mode("studies.plots:plot"),
}

_CONFIG = flags.DEFINE_string("config", None, "FILE.py[:VARIANT], or a run's JSON.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_MODES = ", ".join({mode: "" for _, mode in MODES})
_MODE = flags.DEFINE_string("mode", "train", _MODES)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Of this process, from 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run.")


def run(overrides: list[str]) -> None:
    """Does what --mode says."""
    home = Path(__file__).parent
    name, folder = _CONFIG.value, _WORKDIR.value
    config = cli.full_config(name, folder, overrides, common.base, home)
    modes = tuple(mode for task, mode in MODES if task == config.task)
    check_choice(f"--mode for config.task={config.task}", _MODE.value, modes)
    mode = MODES[config.task, _MODE.value]
    module, function = mode.function.split(":")
    if not mode.devices:
        getattr(importlib.import_module(module), function)(config)
        return
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
