"""Where a run goes on: after its newest checkpoint, or after converted weights."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.checkpoints.runs import Checkpoints, TrainProgress
from vse_jax.config import Config
from vse_jax.data.dataset import Split
from vse_jax.data.digests import changes, data_digests
from vse_jax.data.sampler import Epochs
from vse_jax.distributed.multihost import on_process_zero


def resume_progress(
    config: Config,
    splits: Sequence[Split],
    checkpoints: Checkpoints,
    accept_new_data: bool,
) -> tuple[TrainProgress, bool]:
    """(where the run stands, with the digests of its data; whether they are new).

    New data that are accepted begin with an epoch: one that had begun on the old ones
    is not finished. What was validated on those counts no more.

    Args:
        config: of the run.
        splits: to train on, to validate on and to test on.
        checkpoints: of the run.
        accept_new_data: goes on where the data have changed since the last one.

    Raises:
        InputError: the data changed since the last checkpoint, and that is not
            accepted; or it is damaged, or of another version.
    """
    # Process 0 decides for all: each may read a copy of the data of its own.
    data = on_process_zero(lambda: data_digests(config, splits))
    before = checkpoints.progress()
    if before is None or checkpoints.holds_converted():
        return TrainProgress(data=data), False
    changed = changes(before.data, data)
    # Of a split that is not read now (config.eval.split may change) all stays known.
    data["splits"] = before.data["splits"] | data["splits"]
    if not changed:
        return dataclasses.replace(before, data=data), False
    what = f"changed since the checkpoint of step {before.step}: {'; '.join(changed)}"
    if not accept_new_data:
        raise InputError(
            f"{splits[0].root}: the data of this run {what}; --accept_new_data goes "
            "on with them and scores the best model again"
        )
    old = before.data["splits"][splits[0].name]
    epochs = Epochs(
        captions=old["texts"],
        passes=old["most_texts"] if config.data.distinct_images else 1,
        batch_size=config.batch_size,
        first_step=before.first_step,
        first_epoch=before.first_epoch,
    )
    epoch = epochs.position(before.step).epoch
    left = "" if epoch < config.num_epochs else "; raise --config.num_epochs to go on"
    logging.warning(
        "the data %s; accepted: %d of %d epochs are done%s",
        what,
        epoch,
        config.num_epochs,
        left,
    )
    progress = dataclasses.replace(
        before, validated=0, first_step=before.step, first_epoch=epoch, data=data
    )
    return progress, True


def load_converted(
    checkpoints: Checkpoints, model: dict[str, Any], params: dict[str, Any]
) -> tuple[dict[str, Any], int]:
    """(converted weights, the epochs that they were trained for).

    The authors' losses have no parameters: another loss keeps its initial ones, and so
    do adapters.

    Args:
        checkpoints: of the run.
        model: {"params", "batch_stats"}, shapes with shardings.
        params: of the initial state.
    """
    towers = {name: x for name, x in model["params"].items() if name != "loss"}
    converted, about = checkpoints.restore_best(model | {"params": towers})
    converted["params"] = params | converted["params"]
    logging.info("converted weights; goes on after epoch %d", about.best_epoch)
    return converted, about.best_epoch
