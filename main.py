"""Trains, evaluates and uses VSE∞ models (README.md):

    python main.py --config=configs/openmoji.py --workdir=runs/demo [--mode=train]

--config.FIELD=VALUE sets a field. Exit codes: 0 done, 1 error, 75 preempted: run again.
"""

import importlib
from pathlib import Path
from typing import NamedTuple

from absl import app, flags

from configs import common
from vse_jax import command_line as cli
from vse_jax.base.errors import InputError, check_choice
from vse_jax.checkpoints.folder import model_config
from vse_jax.distributed import preemption


class Mode(NamedTuple):
    module: str
    function: str  # called with the config and the values of these flags
    takes: tuple[str, ...] = ("workdir",)
    devices: bool = True  # it computes on those at hand
    processes: bool = False  # several may share the work
    published: bool = False  # it gets the published recipe, too
    keeps_memory: bool = False  # batch after batch to its end: ops/memory.py says why
    writes: bool = False  # nobody else may write to its folder meanwhile


_TRAIN = ("workdir", "accept_new_data")
_COMPILER = ("workdir", "topology", "all")
_PUSH = ("workdir", "repo")
MODES = {
    "retrieval": {
        "train": Mode(
            "vse_jax.train",
            "train",
            _TRAIN,
            processes=True,
            keeps_memory=True,
            writes=True,
        ),
        "eval": Mode(
            "vse_jax.commands.evaluate", "evaluate", processes=True, keeps_memory=True
        ),
        "embed": Mode(
            "vse_jax.commands.embed", "embed", processes=True, keeps_memory=True
        ),
        "plot": Mode("vse_jax.commands.plot", "plot"),
        "push": Mode("vse_jax.commands.push", "push", _PUSH, published=True),
        "export_model": Mode("vse_jax.commands.export_model", "export_model"),
        "compile": Mode("vse_jax.planning.report", "compile_run", _COMPILER, False),
        "prepare": Mode("vse_jax.commands.prepare", "prepare", (), False),
        "export": Mode("vse_jax.commands.export", "export", (), False),
        "build_vocab": Mode("vse_jax.commands.build_vocab", "build_vocab", (), False),
        "index": Mode("vse_search.commands.index", "index"),
        "search": Mode("vse_search.commands.search", "search", devices=False),
        "serve": Mode("vse_search.commands.serve", "serve"),
        "explain": Mode("vse_search.commands.explain", "explain"),
    },
    "gpo_synthetic": {
        "train": Mode(
            "studies.gpo_synthetic", "run_study", keeps_memory=True, writes=True
        ),
        "plot": Mode("studies.plots", "plot"),
    },
}

flags.DEFINE_string("config", None, "FILE.py[:VARIANT], or a run's JSON.")
flags.DEFINE(cli.PathParser(), "workdir", None, "Folder of the run.")
flags.DEFINE_string("mode", "train", ", ".join(MODES["retrieval"]))
flags.DEFINE_bool("accept_new_data", False, "train: goes on though its data changed.")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
flags.DEFINE_integer("process_id", None, "Of this process, from 0.")
flags.DEFINE_integer("num_processes", None, "Processes of the run.")
flags.DEFINE_string("topology", None, "compile: v5e:2x4, cpu:8, …; else what is here.")
flags.DEFINE_bool("all", False, "compile: all programs, not only the most expensive.")
flags.DEFINE_string("repo", None, "push: USER/NAME on the Hub; none: W/share/ only.")
flags.DEFINE_bool("trust_code", False, "A shared model's own classes are imported.")


def run(overrides: list[str]) -> None:
    """Does what --mode says."""
    given, home = flags.FLAGS, Path(__file__).parent
    named = (given.config, given.workdir, overrides)
    config = cli.full_config(
        *named, common.base, home, model_config, trust_code=given.trust_code
    )
    modes = MODES[config.task]
    check_choice(f"--mode for config.task={config.task}", given.mode, tuple(modes))
    mode = modes[given.mode]
    if "workdir" in mode.takes and not given.workdir:
        raise InputError(f"--workdir: needed by --mode={given.mode}")
    values = [config, *(given[name].value for name in mode.takes)]
    if mode.published:
        values.append(common.base())
    from vse_jax.data import images  # noqa: PLC0415 (a wrong flag needs no OpenCV)

    images.own_process()
    if not mode.devices:
        return getattr(importlib.import_module(mode.module), mode.function)(*values)
    if given.mode == "train":
        preemption.listen()
    from vse_jax.distributed import runtime  # noqa: PLC0415 (loads jax: seconds)
    from vse_jax.ops import disable_malloc_trim  # noqa: PLC0415 (the same)

    if mode.keeps_memory:
        disable_malloc_trim()

    connection = (given.coordinator, given.process_id, given.num_processes)
    written = given.workdir if mode.writes else None
    with runtime.started(config, given.mode, connection, not mode.processes, written):
        getattr(importlib.import_module(mode.module), mode.function)(*values)


if __name__ == "__main__":
    app.run(cli.program(run), flags_parser=cli.parse)
