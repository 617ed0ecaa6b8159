"""--mode=train: trains, or goes on where it stopped, and ends with the test metrics."""

from pathlib import Path

import jax

from vse_jax.base.errors import InputError
from vse_jax.checkpoints.folder import check_trainable
from vse_jax.checkpoints.runs import Checkpoints, has_checkpoint
from vse_jax.checkpoints.siglip import settle_siglip
from vse_jax.commands.evaluate import evaluate
from vse_jax.config import Config, change_paths, save_config
from vse_jax.data.dataset import read_splits
from vse_jax.data.tokenizers import caption_tokenizer
from vse_jax.data.vocabulary import (
    copy_vocabulary,
    settle_vocab_size,
    settle_vocabulary,
)
from vse_jax.distributed.compile_cache import CompileCache
from vse_jax.distributed.mesh import check_training_batch, make_mesh
from vse_jax.distributed.multihost import on_process_zero
from vse_jax.figures.curves import plot_curves
from vse_jax.training.facts import report, run_facts
from vse_jax.training.loop import fit
from vse_jax.training.plan import make_plan
from vse_jax.training.start import (
    Splits,
    begin,
    check_workdir,
    reached_before,
    start,
    train_schedule,
)


def train(config: Config, workdir: Path, accept_new_data: bool = False) -> None:
    """Trains in `workdir`, or goes on where it stopped, then tests the best epoch.

    Args:
        config: of the run.
        workdir: its folder.
        accept_new_data: goes on where the data have changed since its last checkpoint.

    Raises:
        InputError: bad config or data, another config's workdir, changed data, NaN
            loss, full disk.
        Preempted: SIGTERM came, and what was reached is on disk.
    """
    # Read everything that can be wrong before any time is spent on training.
    check_trainable(workdir)
    if has_checkpoint(workdir):
        settle_vocabulary(config, workdir)
    settle_vocab_size(config)
    settle_siglip(config)
    mesh = make_mesh(config)
    check_training_batch(config, mesh)
    names = (config.data.train_split, config.data.dev_split, config.eval.split)
    splits = Splits(*read_splits(config, names))
    caption_tokenizer(config)  # another model's vocabulary is refused
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{workdir}: {error.strerror}") from error
    with Checkpoints(workdir) as checkpoints, CompileCache() as programs:
        check_workdir(config, workdir, checkpoints)
        reached, new_data = reached_before(config, splits, checkpoints, accept_new_data)
        schedule = train_schedule(config, splits.train, reached)
        plan = make_plan(config, mesh, schedule)
        if jax.process_index() == 0:
            copy_vocabulary(config, workdir)
            saved = config.copy_and_resolve_references()
            change_paths(saved, lambda path: str(Path(path).absolute()))
            save_config(saved, workdir / "config.json")  # fit to be used from anywhere
            report(run_facts(plan, splits, workdir), workdir)
        run, state = start(plan, splits, workdir, checkpoints, programs, reached)
        try:
            begin(run, state, reached, new_data)
            fit(run, state, reached)
        finally:
            run.logger.close()
            run.profiler.close()
        on_process_zero(lambda: plot_curves(workdir, plan.schedule))
        checkpoints.wait()  # the best model is read from the disk
        evaluate(config, workdir, run.evaluator, splits.test)
