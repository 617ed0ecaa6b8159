"""Trains, evaluates and uses VSE∞ models: see README.md.

    python main.py --config=configs/openmoji.py --workdir=runs/demo [--mode=train]
    python main.py --workdir=runs/demo --mode=eval --config.eval.split=dev

Any field of the config can be set: --config.batch_size=64, --config.data.root=DIR.
Exit codes: 0 done, 1 bad input (one line on stderr).
"""

import os
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from vse_jax.command_line import errors_on_one_line, set_up_logging
from vse_jax.errors import InputError, check_choice

MODES = ("train", "eval", "embed", "plot", "prepare", "export", "build_vocab")
TASKS = {"retrieval": MODES, "gpo_synthetic": ("train", "plot")}

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")


def parse_flags(argv: list[str]) -> list[str]:
    """Parses absl flags; without --config, the workdir's saved config is used.

    Raises:
        InputError: unknown flag or config field, or a value of the wrong type.
    """
    names = [arg.lstrip("-").split("=")[0] for arg in argv]
    if "config" not in names and "workdir" in names:
        position = names.index("workdir")
        workdir = argv[position].partition("=")[2]
        if "=" not in argv[position] and len(argv) > position + 1:
            workdir = argv[position + 1]
        if not workdir:
            raise InputError("--workdir: no folder given")
        argv = [argv[0], f"--config=configs/saved.py:{workdir}", *argv[1:]]
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        field = str(error).strip("\"'")
        named = [arg for arg in argv if f".{field}" in arg.split("=")[0]]
        raise InputError(f"{(named or [field])[0]}: no such config field") from None
    except (flags.Error, TypeError, ValueError, OSError, SyntaxError) as error:
        raise InputError(" ".join(str(error).split())) from None


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

    from vse_jax.data.captions import settle_vocab_size
    from vse_jax.runtime import configure

    settle_vocab_size(config)
    configure(config)
    from vse_jax import evaluate, synthetic, train
    from vse_jax.search.plots import plot

    train_of = {"retrieval": train.train, "gpo_synthetic": synthetic.run_study}
    modes = {"train": train_of[task], "plot": plot}
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
