"""Trains, evaluates and uses VSE∞ models (README.md):

    python main.py --config=configs/openmoji.py --workdir=runs/demo [--mode=train]
    python main.py --model=hf://USER/NAME --workdir=runs/photos --mode=index

--config.FIELD=VALUE sets a field. Exit codes: 0 done, 1 error, 75 preempted: run again.
Where the package is installed, `vse-jax` stands for `python main.py`.
"""

import importlib
from typing import NamedTuple

from absl import flags

from vse_jax import __version__
from vse_jax import command_line as cli
from vse_jax.base.errors import InputError, check_choice
from vse_jax.base.extras import require_extra
from vse_jax.checkpoints.folder import is_siglip, model_config, model_folder
from vse_jax.config import config_dict
from vse_jax.distributed import preemption


class Mode(NamedTuple):
    """What a --mode calls: a function of the config and of some flags, by their names.

    function: 'module:name'; imported when the mode is chosen.
    flags: which it takes.
    images: it reads images; OpenCV and Pillow are then set up for this process.
    devices: it computes on JAX's.
    processes: several may share the work.
    keeps_memory: batch after batch to its end: see `ops.disable_malloc_trim`.
    writes: nobody else may write to its folder meanwhile.
    extra: of pyproject.toml, without which it cannot even be loaded.
    """

    function: str
    flags: tuple[str, ...] = ("workdir", "model")
    images: bool = True
    devices: bool = True
    processes: bool = False
    keeps_memory: bool = False
    writes: bool = False
    extra: str | None = None


MODES = {
    "train": Mode(
        "vse_jax.train:train",
        flags=("workdir", "model", "accept_new_data"),
        processes=True,
        keeps_memory=True,
        writes=True,
        extra="train",
    ),
    "eval": Mode(
        "vse_jax.commands.evaluate:evaluate", processes=True, keeps_memory=True
    ),
    "embed": Mode("vse_jax.commands.embed:embed", processes=True, keeps_memory=True),
    "plot": Mode("vse_jax.commands.plot:plot", images=False),
    "push": Mode(
        "vse_jax.commands.push:push", ("workdir", "model", "repo"), images=False
    ),
    "export_model": Mode("vse_jax.commands.export_model:export_model", images=False),
    "interpolate": Mode("vse_jax.commands.interpolate:interpolate", ("workdir",)),
    "compile": Mode(
        "vse_jax.planning.report:compile_run",
        flags=("workdir", "topology", "all"),
        images=False,
        devices=False,
        extra="train",
    ),
    "prepare": Mode("vse_jax.commands.prepare:prepare", flags=(), devices=False),
    "export": Mode(
        "vse_jax.commands.export:export", flags=(), devices=False, extra="train"
    ),
    "build_vocab": Mode(
        "vse_jax.commands.build_vocab:build_vocab",
        flags=(),
        images=False,
        devices=False,
    ),
    "index": Mode("vse_search.commands.index:index"),
    "search": Mode("vse_search.commands.search:search", devices=False),
    "serve": Mode("vse_search.commands.serve:serve"),
    "explain": Mode("vse_search.commands.explain:explain"),
}

flags.DEFINE_string("config", None, "FILE.py[:VARIANT], or a run's JSON.")
flags.DEFINE(
    cli.PathParser(bucket="--workdir"),
    "workdir",
    None,
    "Folder of the run: a local one, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER.",
)
flags.DEFINE_string(
    "model",
    None,
    "The weights, where they are not the workdir's: such a folder, or "
    "hf://USER/NAME[@REVISION]. Nothing is written there.",
)
flags.DEFINE_string("mode", "train", ", ".join(MODES))
flags.DEFINE_bool("accept_new_data", False, "train: goes on though its data changed.")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
flags.DEFINE_integer("num_processes", None, "Processes of the run.")
flags.DEFINE_string("topology", None, "compile: v5e:2x4, cpu:8, …; else what is here.")
flags.DEFINE_bool("all", False, "compile: all programs, not only the most expensive.")
flags.DEFINE_string(
    "repo", None, "push: USER/NAME on the Hub; without it nothing is uploaded."
)
flags.DEFINE_bool("trust_code", False, "Imports the classes that a shared model names.")
flags.DEFINE_bool("version", False, "Prints the version of vse_jax.")


def run(overrides: list[str]) -> None:
    """Does what --mode says."""
    given = flags.FLAGS
    if given.version:
        print(f"vse_jax {__version__}")
        return
    check_choice("--mode", given.mode, tuple(MODES))
    mode = MODES[given.mode]
    if "workdir" in mode.flags and not given.workdir:
        raise InputError(f"--workdir: needed by --mode={given.mode}")
    if given.model and "model" not in mode.flags:
        raise InputError(f"--model: --mode={given.mode} uses no weights")
    model = model_folder(given.model, "--model") if given.model else None
    if given.config:
        values = cli.read_config(given.config, trust_code=given.trust_code)
    elif given.mode == "train" and model and is_siglip(model):
        raise InputError(
            "--config: needed to train from a published SigLIP, which has no recipe; "
            "configs/coco_siglip2.py is one"
        )
    elif folder := model or given.workdir:
        values = config_dict(model_config(folder, trust_code=given.trust_code))
    else:
        raise InputError(
            "--config: name a config file, a --model, or the --workdir of a run"
        )
    config = cli.final_config(values, overrides)
    if mode.extra:
        require_extra(f"--mode={given.mode}", mode.extra)

    # A wrong flag is found before these are loaded, which takes seconds.
    module, _, name = mode.function.partition(":")
    arguments = {flag: given[flag].value for flag in mode.flags}
    if "model" in arguments:
        arguments["model"] = model
    if mode.images:
        importlib.import_module("vse_jax.data.images").own_process()
    if not mode.devices:
        getattr(importlib.import_module(module), name)(config, **arguments)
        return
    if given.mode == "train":
        preemption.listen()
    if mode.keeps_memory:
        importlib.import_module("vse_jax.ops").disable_malloc_trim()
    runtime = importlib.import_module("vse_jax.distributed.runtime")
    with runtime.started(
        config,
        given.mode,
        (given.coordinator, given.process_id, given.num_processes),
        alone=not mode.processes,
        written=given.workdir if mode.writes else None,
    ):
        getattr(importlib.import_module(module), name)(config, **arguments)


def main() -> None:
    """The command `vse-jax`, and main.py."""
    cli.start(run, __name__)
