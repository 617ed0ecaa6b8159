"""Converts the official program's files: released checkpoints and pretrained CNNs.

    python convert_torch_weights.py --checkpoint=model_best.pth --workdir=W
    python convert_torch_weights.py --hub=cccjc/vse-infty/FOLDER --workdir=W
    python convert_torch_weights.py --workdir=W --to-torch=FILE
    python convert_torch_weights.py --backbone=FILE --kind=detector --output=DIR

W then works with main.py: --workdir=W --mode=eval --config.data.root=DIR. It keeps the
vocabulary that --vocab=FILE names, or that is found and fits. DIR is for
config.image.weights. Needs PyTorch (make setup-dev, or the extra `convert`).
Exit codes: 0 done, 1 bad input (one line on stderr). Where the package is installed,
`vse-jax-convert` stands for `python convert_torch_weights.py`.
"""

import os

from absl import flags

from vse_jax import command_line as cli
from vse_jax.base.errors import InputError

flags.DEFINE(cli.PathParser(), "checkpoint", None, "Released model_best.pth.")
flags.DEFINE_string("hub", None, "Released model: OWNER/REPOSITORY/FOLDER.")
flags.DEFINE(cli.PathParser(), "to-torch", None, "File to write for the official code.")
flags.DEFINE(cli.PathParser(), "backbone", None, "File of a pretrained CNN.")
flags.DEFINE(
    cli.PathParser(bucket="--workdir"),
    "workdir",
    None,
    "Folder of the run: a local one, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER.",
)
flags.DEFINE(cli.PathParser(), "vocab", None, "Vocabulary of the released model.")
flags.DEFINE_string("kind", None, "Which CNN: the official --backbone_source.")
flags.DEFINE(cli.PathParser(), "output", None, "Folder to write the CNN into.")

# What to do → the other flags that it needs, all of them.
_TASKS = {
    "checkpoint": {"workdir"},
    "hub": {"workdir"},
    "to-torch": {"workdir"},
    "backbone": {"kind", "output"},
}


def run(_) -> None:
    """Dispatches on the flag that says what to do."""
    names = (*_TASKS, "workdir", "kind", "output")
    given = {n: v for n in names if (v := flags.FLAGS[n].value) is not None}
    tasks = given.keys() & _TASKS.keys()
    if len(tasks) != 1:
        raise InputError(f"give one of {', '.join(f'--{task}' for task in _TASKS)}")
    (task,) = tasks
    others = given.keys() - tasks
    for name in sorted(_TASKS[task] ^ others):
        verb = "goes without" if name in others else "needs"
        raise InputError(f"--{task} {verb} --{name}")
    vocab = flags.FLAGS.vocab
    if vocab is not None and task not in ("checkpoint", "hub"):
        raise InputError(f"--{task} goes without --vocab")

    # From here on jax is imported: a wrong flag is found before.
    if task == "backbone":
        from vse_jax.checkpoints.torch.backbones import convert_backbone  # noqa: PLC0415

        convert_backbone(given["backbone"], given["kind"], given["output"])
        print(f"{given['output']}: {given['kind']} CNN, for config.image.weights")
        return
    from vse_jax.checkpoints.torch import released  # noqa: PLC0415

    workdir = given["workdir"]
    if task == "to-torch":
        released.run_to_checkpoint(workdir, given["to-torch"])
        print(f"{given['to-torch']}: for the official code")
        return
    if task == "hub":
        from vse_jax.checkpoints.folder import fetch_released  # noqa: PLC0415

        file = fetch_released(given["hub"])
    else:
        file = given["checkpoint"]
    found = released.checkpoint_to_run(file, workdir, vocab)
    config = found.config
    print(
        f"{workdir}: {config.data.name}, {config.image.kind} + {config.text.kind}, "
        f"{found.epoch} epochs, best dev rsum {found.best_rsum:.1f}"
    )


def main() -> None:
    """The command `vse-jax-convert`, and convert_torch_weights.py."""
    # Copying arrays needs no accelerator; one that is busy should not be in the way.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    cli.start(run, __name__)
