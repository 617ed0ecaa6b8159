"""Checkpoints of a run: `last` to go on from, `best` to evaluate. Orbax lives here.

    W/checkpoints/last/<step>/{model,optimizer,data}   everything a restart needs
    W/checkpoints/best/<step>/{model,data}             the best dev rsum so far

A checkpoint appears under its name only when it is whole (Orbax renames it), and an old
one goes only after the new one has come: a run killed at any moment, or a disk that
fills up, leaves a usable one. Each is on disk before the next is started, so `best` is
the one that `last` names, or is missing where `last` itself is the best.
"""

import contextlib
import dataclasses
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from absl import logging

from vse_jax.base.errors import InputError
from vse_jax.base.files import read_object, write_atomically
from vse_jax.base.trees import flatten
from vse_jax.devices.cluster import is_loss

_ABOUT = "metadata"  # the JSON file of the item `data`
CONVERTED = 0  # step of `best` in a folder that convert_torch_weights.py made


@dataclass
class Reached:
    """What a run has reached: the item `data` of its last checkpoint.

    step: finished steps. validated: how many they were at the last validation.
    best_rsum, best_step: of the best validation (−1, None: none yet; step 0: converted
    weights). first_step, first_epoch: steps and finished epochs when the data last
    changed. data: digests of the data (data/digests.py).
    """

    step: int = 0
    validated: int = 0
    best_rsum: float = -1.0
    best_step: int | None = None
    first_step: int = 0
    first_epoch: int = 0
    data: dict[str, Any] = dataclasses.field(default_factory=dict)


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run has saved anything in its folder."""
    found = (workdir / "checkpoints").glob("*/*")
    return any(path.name.isdigit() for path in found)


class Checkpoints:
    """The `last` and `best` checkpoints below `workdir`; use it in a `with` statement.

    Args:
        workdir: the run's folder; created when missing.
        read_only: change nothing there, neither create folders nor clean up, so that a
            run that is going on may be looked at.
    """

    def __init__(self, workdir: Path, read_only: bool = False):
        self._folder = (Path(workdir) / "checkpoints").absolute()
        self._last = _manager(self._folder / "last", ("model", "optimizer"), read_only)
        self._best = _manager(self._folder / "best", ("model",), read_only)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        """Ends Orbax's threads, which must not outlive the interpreter."""
        failed = True
        try:
            if kind is None:
                self.wait()
                failed = False
        finally:
            for manager in (self._last, self._best):
                # What goes wrong here after an error would only hide that error.
                with contextlib.suppress(*([Exception] if failed else [])):
                    manager.close()

    def last_step(self) -> int | None:
        return self._last.latest_step()

    def best_step(self) -> int | None:
        return self._best.latest_step()

    def save_last(self, model, optimizer, reached: Reached) -> None:
        """Starts writing; `model` and `optimizer` may be donated once this returns.

        Args:
            model: {"params", "batch_stats"}.
            optimizer: what else the train state holds.
            reached: where the run stands.

        Raises:
            InputError: this or the previous save could not be written.
        """
        self._save(
            self._last,
            reached.step,
            model=ocp.args.StandardSave(model),
            optimizer=ocp.args.StandardSave(optimizer),
            data=ocp.args.JsonSave(dataclasses.asdict(reached)),
        )

    def save_best(self, step: int, model, data: dict) -> None:
        """As `save_last`, without what only training needs.

        Args:
            step: finished steps.
            model: {"params", "batch_stats"}.
            data: {"rsum": on dev, "epoch": finished epochs}.
        """
        self._save(
            self._best,
            step,
            model=ocp.args.StandardSave(model),
            data=ocp.args.JsonSave(data),
        )

    def _save(self, manager: ocp.CheckpointManager, step: int, **items) -> None:
        # One after the other, so that `best` is never older than `last` says. (Orbax
        # numbers its barriers as its threads come to them, too: with two saves going
        # on, processes might wait for each other for ever.)
        self.wait()
        with self._failures_named(manager):
            saved = manager.save(step, args=ocp.args.Composite(**items))
        if not saved:  # Orbax skips a step that is not after the latest one
            raise InputError(
                f"{manager.directory}: step {step} was not saved, because step "
                f"{manager.latest_step()} is there"
            )

    def reached(self) -> Reached | None:
        """Where the last checkpoint stands; None where there is none.

        Raises:
            InputError: it is damaged, or of another version.
        """
        step = self.last_step()
        if step is None:
            return None
        fields = self._about(self._last, step)
        if fields.keys() != {field.name for field in dataclasses.fields(Reached)}:
            raise InputError(
                f"{self._last.directory / str(step)}: written by another version of "
                "vse_jax; finish the run with that version"
            )
        return Reached(**fields)

    def restate(self, reached: Reached) -> None:
        """Replaces what the last checkpoint says of the run, and the best of its rsum.

        `last` comes after `best`: until it has changed, so has nothing for a restart.
        """
        step, best = self.last_step(), self.best_step()
        assert step is not None
        if best is not None:
            about = self._about(self._best, best) | {"rsum": reached.best_rsum}
            self._write_about(self._best, best, about)
        self._write_about(self._last, step, dataclasses.asdict(reached))

    def _about(self, manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
        """The item `data` of a checkpoint."""
        return read_object(Path(manager.directory) / str(step) / "data" / _ABOUT)

    def _write_about(
        self, manager: ocp.CheckpointManager, step: int, about: dict[str, Any]
    ) -> None:
        file = Path(manager.directory) / str(step) / "data" / _ABOUT
        write_atomically(file, json.dumps(about).encode())

    def restore_last(self, model, optimizer):
        """(model, optimizer) of the last checkpoint.

        The arguments are abstract trees with shardings: restoring without a target
        would turn list indices into strings and permute long lists (0, 1, 10, 2, …).

        Raises:
            InputError: it is damaged, or of another model or version.
        """
        restored = self._restore(
            self._last,
            model,
            model=ocp.args.StandardRestore(model),
            optimizer=ocp.args.StandardRestore(optimizer),
        )
        return restored["model"], restored["optimizer"]

    def restore_best(self, model):
        """(model, data) of the best checkpoint.

        Raises:
            InputError: there is none, it is damaged, or it is of another model.
        """
        if self.best_step() is None:
            raise InputError(f"{self._folder / 'best'}: no checkpoint; train first")
        restored = self._restore(
            self._best,
            model,
            model=ocp.args.StandardRestore(model),
            data=ocp.args.JsonRestore(),
        )
        return restored["model"], restored["data"]

    def best_progress(self) -> dict:
        """{"rsum": on dev, "epoch": finished epochs} of the best checkpoint."""
        manager, step = self._best, self.best_step()
        with self._damage_named(manager, step):
            wanted = ocp.args.Composite(data=ocp.args.JsonRestore())
            return manager.restore(step, args=wanted)["data"]

    def _restore(self, manager: ocp.CheckpointManager, target, **items):
        step = manager.latest_step()
        with self._damage_named(manager, step):
            self._check_fits(manager, step, target)
            return manager.restore(step, args=ocp.args.Composite(**items))

    def check_start(self) -> None:
        """Raises InputError where `best` has no `last` beside it.

        A run saves `last` first, so somebody removed it; going on from the start would
        leave that best model in place of the new run's. Converted weights have none.
        """
        best = self.best_step()
        if self.last_step() is None and best not in (None, CONVERTED):
            raise InputError(
                f"{self._folder}: best/{best} is there, but no last checkpoint to go "
                f"on from; name another --workdir, or remove {self._folder} to start "
                "again"
            )

    def best_is_missing(self, reached: Reached) -> bool:
        """Whether a kill between two saves left `last` as the only place of the best.

        Raises:
            InputError: `best` is not the one that `last` names: somebody changed it.
        """
        there = self.best_step()
        # After a stop in a validation, it may have been found once already.
        if there in (reached.best_step, reached.step):
            return False
        if reached.best_step == reached.step:
            return True
        raise InputError(
            f"{self._folder}: last/{reached.step} says that step {reached.best_step} "
            f"was the best, but best/ holds {'none' if there is None else there}; "
            f"bring it back, or remove {self._folder} to start again"
        )

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        for manager in (self._last, self._best):
            with self._failures_named(manager):
                manager.wait_until_finished()

    @contextlib.contextmanager
    def _failures_named(self, manager: ocp.CheckpointManager) -> Iterator[None]:
        """Full disk, no permission, …: one line; earlier ones are untouched."""
        try:
            yield
        except Exception as error:
            if not _is_of_the_disk(error):
                raise
            raise InputError(
                f"{manager.directory}: could not save ({_first_line(error)}); "
                f"the last good checkpoint there stays usable"
            ) from error

    @contextlib.contextmanager
    def _damage_named(self, manager: ocp.CheckpointManager, step) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except Exception as error:  # whatever missing or truncated files make it raise
            if is_loss(error):
                raise
            raise InputError(
                f"{manager.directory / str(step)}: damaged checkpoint "
                f"({_first_line(error)}); what to do: docs/files.md"
            ) from error

    def _check_fits(self, manager: ocp.CheckpointManager, step, target) -> None:
        """Raises InputError that names how the stored model differs from `target`."""
        stored = manager.item_metadata(step)["model"]
        there = {path: str(leaf.shape) for path, leaf in flatten(stored.tree).items()}
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
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    for name in trees:
        handler = ocp.StandardCheckpointHandler()
        registry.add(name, ocp.args.StandardSave, handler)
        registry.add(name, ocp.args.StandardRestore, handler)
    handler = ocp.JsonCheckpointHandler(_ABOUT)
    registry.add("data", ocp.args.JsonSave, handler)
    registry.add("data", ocp.args.JsonRestore, handler)
    return ocp.CheckpointManager(
        folder,
        handler_registry=registry,
        options=ocp.CheckpointManagerOptions(
            max_to_keep=1,
            read_only=read_only,
            cleanup_tmp_directories=not read_only,  # left half-written by a killed run
        ),
    )


def _is_of_the_disk(error: BaseException | None) -> bool:
    """Whether the system refused a file, which Orbax passes on in many ways."""
    while error is not None:
        # Tensorstore's: "… Failed to write 119529 bytes …: No space left on device
        # [os_error_code='28']".
        if isinstance(error, OSError) or re.search(r"os_error_code=", str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    logging.debug("checkpoint", exc_info=error)
    return lines[0][:300] if lines else type(error).__name__
