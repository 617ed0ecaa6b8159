"""Trains, evaluates and uses VSE∞ models: see README.md.

    python main.py --config=configs/openmoji.py --workdir=runs/demo [--mode=train]
    python main.py --workdir=runs/demo --mode=eval --config.eval.split=dev

Any field of the config can be set: --config.batch_size=64, --config.data.root=DIR.
Several processes and preemption: docs/distributed.md. Exit codes: 0 done, 1 bad input
or another process lost (one line on stderr), 75 preempted (run the same command again).
"""

import os
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags

from vse_jax.base.command_line import errors_on_one_line, parse_flags, set_up_logging
from vse_jax.base.errors import InputError, check_choice
from vse_jax.devices import preemption

MODES = ("train", "eval", "embed", "plot", "prepare", "export", "build_vocab")
TASKS = {"retrieval": MODES, "gpo_synthetic": ("train", "plot")}

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
_COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "Of this process, from 0.")
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run.")


def run() -> None:
    """Dispatches on config.task and --mode."""
    if _CONFIG.value is None:
        raise InputError("--config: name a config file, or the --workdir of a run")
    config, task, mode = _CONFIG.value, _CONFIG.value.task, _MODE.value
    check_choice("config.task", task, tuple(TASKS))
    check_choice(f"--mode for config.task={task}", mode, TASKS[task])
    if mode in ("prepare", "export", "build_vocab"):
        # These need no accelerator, so jax stays unimported.
        from vse_jax.data import export, prepare, vocabulary

        work = {"prepare": prepare.prepare, "export": export.export}
        work["build_vocab"] = vocabulary.build_vocabulary
        work[mode](config)
        return
    if _WORKDIR.value is None and task == "retrieval":
        raise InputError(f"--workdir: needed by --mode={mode}")
    workdir = Path(_WORKDIR.value or f"runs/{task}")
    if (task, mode) == ("retrieval", "train"):
        preemption.listen()

    from vse_jax.devices import cluster

    with cluster.ends_together(), errors_on_one_line():
        cluster.connect(_COORDINATOR.value, _PROCESS_ID.value, _NUM_PROCESSES.value)
        run_on_devices(mode, config, workdir)


def run_on_devices(mode: str, config: ConfigDict, workdir: Path) -> None:
    """The modes that compute; every process of the run comes here."""
    from vse_jax import synthetic
    from vse_jax.data.captions import settle_vocab_size
    from vse_jax.devices.cluster import check_alone, check_same_config
    from vse_jax.devices.runtime import configure
    from vse_jax.evaluation import evaluator as evaluate
    from vse_jax.search.plots import plot
    from vse_jax.training import loop as train

    settle_vocab_size(config)
    configure(config)
    if mode == "plot" or config.task != "retrieval":
        check_alone(f"--mode={mode} of config.task={config.task}")
    check_same_config(config, mode)
    train_of = {"retrieval": train.train, "gpo_synthetic": synthetic.run_study}
    modes = {"train": train_of[config.task], "plot": plot}
    modes |= {"eval": evaluate.evaluate, "embed": evaluate.embed}
    modes[mode](config, workdir)


def main(_) -> None:
    set_up_logging()
    with errors_on_one_line():
        run()


def _parser(argv: list[str]) -> list[str]:
    with errors_on_one_line():
        return parse_flags(argv)


if __name__ == "__main__":
    # One seed, one process: what XLA's warnings say here is for its developers.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    app.run(main, flags_parser=_parser)
