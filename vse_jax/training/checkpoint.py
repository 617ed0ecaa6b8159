"""Checkpoints of a run: `last` to go on from, `best` to evaluate. Orbax lives here.

    W/checkpoints/last/<step>/{model,optimizer,data}   everything a restart needs
    W/checkpoints/best/<step>/{model,data}             the best dev rsum so far

A checkpoint appears under its name only when it is whole (Orbax renames it), and an old
one goes only after the new one has come: a run killed at any moment, or a disk that
fills up, leaves a usable one.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.base.trees import flatten
from vse_jax.devices.cluster import is_loss


class Checkpoints:
    """The `last` and `best` checkpoints below `workdir`; use it in a `with` statement.

    Args:
        workdir: the run's folder; created when missing.
        read_only: change nothing there, neither create folders nor clean up, so that a
            run that is going on may be looked at.
    """

    def __init__(self, workdir: Path, read_only: bool = False):
        self._folder = (Path(workdir) / "checkpoints").absolute()
        trees = ("model", "optimizer")
        self._last = _manager(self._folder / "last", trees, read_only)
        self._best = _manager(self._folder / "best", trees[:1], read_only)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        """Ends Orbax's threads, which must not outlive the interpreter."""
        if kind is None:
            self.wait()
        for manager in (self._last, self._best):
            # What goes wrong here after an error would only hide that error.
            with contextlib.suppress(*([Exception] if kind else [])):
                manager.close()

    def last_step(self) -> int | None:
        return self._last.latest_step()

    def best_step(self) -> int | None:
        return self._best.latest_step()

    def save_last(self, step: int, model, optimizer, data: dict) -> None:
        """Starts writing; `model` and `optimizer` may be donated once this returns.

        Args:
            step: number of finished steps.
            model: {"params", "batch_stats"}.
            optimizer: what else the train state holds.
            data: JSON-able progress of the run.

        Raises:
            InputError: this or the previous save could not be written.
        """
        self._wait_for_other(self._best, "best")
        with self._errors_named("last"):
            self._last.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(model),
                    optimizer=ocp.args.StandardSave(optimizer),
                    data=ocp.args.JsonSave(data),
                ),
            )

    def save_best(self, step: int, model, data: dict) -> None:
        """As `save_last`, without what only training needs."""
        self._wait_for_other(self._last, "last")
        with self._errors_named("best"):
            self._best.save(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardSave(model), data=ocp.args.JsonSave(data)
                ),
            )

    def restore_last(self, model, optimizer):
        """(model, optimizer, data) of the last checkpoint.

        The arguments are abstract trees with shardings: restoring without a target
        would turn list indices into strings and permute long lists (0, 1, 10, 2, …).
        """
        step = self._last.latest_step()
        with self._damage_named("last", step):
            self._check_fits(self._last, step, model)
            restored = self._last.restore(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardRestore(model),
                    optimizer=ocp.args.StandardRestore(optimizer),
                    data=ocp.args.JsonRestore(),
                ),
            )
        return restored["model"], restored["optimizer"], restored["data"]

    def restore_best(self, model):
        """(model, data) of the best checkpoint.

        Raises:
            InputError: there is none, or it is of another model.
        """
        step = self._best.latest_step()
        if step is None:
            raise InputError(f"{self._folder / 'best'}: no checkpoint; train first")
        with self._damage_named("best", step):
            self._check_fits(self._best, step, model)
            restored = self._best.restore(
                step,
                args=ocp.args.Composite(
                    model=ocp.args.StandardRestore(model), data=ocp.args.JsonRestore()
                ),
            )
        return restored["model"], restored["data"]

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        self._wait_for(self._last, "last")
        self._wait_for(self._best, "best")

    def _wait_for(self, manager: ocp.CheckpointManager, name: str) -> None:
        with self._errors_named(name):
            manager.wait_until_finished()

    def _wait_for_other(self, manager: ocp.CheckpointManager, name: str) -> None:
        """One save at a time where several processes take part.

        Orbax numbers its barriers as its threads come to them: with two saves going on,
        processes may number them differently, and then wait for each other for ever.
        """
        if jax.process_count() > 1:
            self._wait_for(manager, name)

    @contextlib.contextmanager
    def _errors_named(self, name: str) -> Iterator[None]:
        """Full disk, no permission, …: one line; earlier ones are untouched."""
        try:
            yield
        except Exception as error:
            if is_loss(error):
                raise  # another process is gone, which the disk has nothing to do with
            logging.debug("save failed", exc_info=True)
            raise InputError(
                f"{self._folder / name}: could not save ({_first_line(error)}); "
                f"the last good checkpoint there stays usable"
            ) from error

    @contextlib.contextmanager
    def _damage_named(self, name: str, step: int | None) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # whatever missing or truncated files make it raise
            if is_loss(error):
                raise
            raise InputError(
                f"{self._folder / name / str(step)}: damaged checkpoint "
                f"({_first_line(error)})"
            ) from error

    def _check_fits(self, manager: ocp.CheckpointManager, step: int, target) -> None:
        """Raises InputError that names how the stored model differs from `target`."""
        stored = manager.item_metadata(step)["model"]
        there = {path: str(leaf.shape) for path, leaf in flatten(stored).items()}
        here = {path: str(leaf.shape) for path, leaf in flatten(target).items()}
        differing = [
            f"{path} ({there.get(path, 'none')} there, {here.get(path, 'none')} here)"
            for path in sorted(there.keys() | here.keys())
            if there.get(path) != here.get(path)
        ]
        if differing:
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise InputError(
                f"{manager.directory / str(step)}: another model's checkpoint: "
                + ", ".join(differing[:3])
                + more
            )


def _manager(
    folder: Path, trees: tuple[str, ...], read_only: bool
) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
        folder,
        item_handlers={name: ocp.StandardCheckpointHandler() for name in trees}
        | {"data": ocp.JsonCheckpointHandler()},
        options=ocp.CheckpointManagerOptions(
            max_to_keep=1,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,  # left half-written by a killed run
        ),
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else type(error).__name__
