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
import errno
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from jax.experimental import multihost_utils

from vse_jax.base.errors import InputError, refusal
from vse_jax.base.files import write_atomically
from vse_jax.base.trees import flatten
from vse_jax.distributed.cluster import is_peer_failure

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
        trees = {"model": model, "optimizer": optimizer}
        self._save(self._last, reached.step, trees, dataclasses.asdict(reached))

    def save_best(self, step: int, model, data: dict) -> None:
        """As `save_last`, without what only training needs.

        Args:
            step: finished steps.
            model: {"params", "batch_stats"}.
            data: {"rsum": on dev, "epoch": finished epochs}; of a model trained here
                also "vocabulary", its digest.
        """
        self._save(self._best, step, {"model": model}, data)

    def _save(
        self, manager: ocp.CheckpointManager, step: int, trees: dict[str, Any], data
    ) -> None:
        # One after the other, so that `best` is never older than `last` says. (Orbax
        # numbers its barriers as its threads come to them, too: with two saves going
        # on, processes might wait for each other for ever.)
        self.wait()
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        about = ocp.args.JsonSave(data | {"checksum": _checksum(trees)})
        with self._failures_named(manager):
            saved = manager.save(step, args=ocp.args.Composite(**items, data=about))
        if not saved:  # Orbax skips a step that is not after the latest one
            raise InputError(
                f"{manager.directory}: step {step} was not saved, because step "
                f"{manager.latest_step()} is there"
            )

    def reached(self) -> Reached | None:
        """Where the last checkpoint stands; None where there is none.

        Raises:
            InputError: it cannot be read (says why), or is of another version.
        """
        step = self.last_step()
        if step is None:
            return None
        fields = self._about(self._last, step)
        known = {"checksum"} | {field.name for field in dataclasses.fields(Reached)}
        if fields.keys() != known:
            raise InputError(
                f"{_folder(self._last, step)}: written by another version of vse_jax; "
                "finish the run with that version"
            )
        del fields["checksum"]
        return Reached(**fields)

    def restate(self, reached: Reached) -> None:
        """Replaces what the last checkpoint says of the run, and the best of itself.

        `last` comes after `best`: until it has changed, so has nothing for a restart.
        """
        last, best = self.last_step(), self.best_step()
        assert last is not None
        if best is not None:
            fields = {"vocabulary": reached.data["vocabulary"]}
            self._change_about(self._best, best, fields | {"rsum": reached.best_rsum})
        self._change_about(self._last, last, dataclasses.asdict(reached))

    def _change_about(
        self, manager: ocp.CheckpointManager, step: int, fields: dict[str, Any]
    ) -> None:
        content = json.dumps(self._about(manager, step) | fields)
        write_atomically(_folder(manager, step) / "data" / _ABOUT, content.encode())

    def _about(self, manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
        """The item `data` of a checkpoint, with the checksum of its arrays."""
        folder = _folder(manager, step)
        with _explained(folder, ("model",)):
            return _read_about(folder)

    def restore_last(self, model, optimizer):
        """(model, optimizer) of the last checkpoint.

        The arguments are abstract trees with shardings: restoring without a target
        would turn list indices into strings and permute long lists (0, 1, 10, 2, …).

        Raises:
            InputError: it cannot be read (says why), or is of another model or version.
        """
        step = self.last_step()
        assert step is not None
        trees = {"model": model, "optimizer": optimizer}
        restored = self._restore(self._last, step, trees)
        return restored["model"], restored["optimizer"]

    def restore_best(self, model):
        """(model, data) of the best checkpoint.

        A run that goes on may replace it meanwhile: then its new one.

        Raises:
            InputError: there is none, it cannot be read (says why), or it is of another
                model.
        """
        while (step := self.best_step()) is not None:
            try:
                data = self.best_progress()
                return self._restore(self._best, step, {"model": model})["model"], data
            except InputError:
                self._best.reload()
                if self.best_step() in (step, None):
                    raise
        raise InputError(f"{self._folder / 'best'}: no checkpoint; train first")

    def best_progress(self) -> dict:
        """What was saved with the best checkpoint, see `save_best`."""
        step = self.best_step()
        assert step is not None
        about = self._about(self._best, step)
        about.pop("checksum", None)
        return about

    def _restore(
        self, manager: ocp.CheckpointManager, step: int, trees: dict[str, Any]
    ) -> dict[str, Any]:
        folder = _folder(manager, step)
        args = {name: ocp.args.StandardRestore(tree) for name, tree in trees.items()}
        with _explained(folder, tuple(trees)):
            stored = manager.item_metadata(step)
            for name, tree in trees.items():
                _check_fits(folder, stored[name].tree, tree)
            restored = dict(manager.restore(step, args=ocp.args.Composite(**args)))
        # A best model that an earlier version saved has none, and is used as it is.
        if self._about(manager, step).get("checksum") not in (
            None,
            _checksum(restored),
        ):
            raise InputError(_damaged(folder, "its arrays are not those saved"))
        return restored

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
            if refusal(error) is None:
                raise
            raise InputError(
                f"{manager.directory}: could not save ({_first_line(error)}); "
                f"the last good checkpoint there stays usable"
            ) from error


def _check_fits(folder: Path, stored, target) -> None:
    """Raises InputError that names how stored arrays differ from `target`."""

    def described(tree) -> dict[str, str]:
        return {
            path: f"{leaf.shape} {leaf.dtype}"
            for path, leaf in flatten(tree).items()
            if not _is_key(leaf.dtype)  # stored as numbers
        }

    keys = {path for path, leaf in flatten(target).items() if _is_key(leaf.dtype)}
    there, here = described(stored), described(target)
    differing = [
        f"{path} ({there.get(path, 'none')} there, {here.get(path, 'none')} here)"
        for path in sorted((there.keys() | here.keys()) - keys)
        if there.get(path) != here.get(path)
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise InputError(
            f"{folder}: the checkpoint of another model, or of another version of "
            f"vse_jax: {', '.join(differing[:3])}{more}"
        )


def _is_key(dtype) -> bool:
    return jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)


def _checksum(trees: dict[str, Any]) -> int:
    """The sum of the bits of all arrays as numbers, whichever devices hold them.

    A file may be damaged in a way that still decodes.
    """
    total = 0
    for leaf in jax.tree.leaves(trees):
        array = jnp.asarray(jax.random.key_data(leaf) if _is_key(leaf.dtype) else leaf)
        for shard in array.addressable_shards:
            if shard.replica_id == 0:
                values = np.ravel(jax.device_get(shard.data))
                bits = values.view(f"u{values.itemsize}")
                total += int(bits.sum(dtype=np.uint64))
    if jax.process_count() > 1:
        own = np.uint32(total % 2**32)
        total = int(multihost_utils.process_allgather(own).sum(dtype=np.uint64))
    return total % 2**32


def _folder(manager: ocp.CheckpointManager, step: int) -> Path:
    return Path(manager.directory) / str(step)


def _read_about(folder: Path) -> dict[str, Any]:
    about = json.loads((folder / "data" / _ABOUT).read_bytes())
    if not isinstance(about, dict):
        raise ValueError(f"data/{_ABOUT} is no JSON object")
    return about


# ---- Why a checkpoint could not be read ----------------------------------------------


@contextlib.contextmanager
def _explained(folder: Path, trees: tuple[str, ...]) -> Iterator[None]:
    """Says in one line why a checkpoint with these trees could not be read.

    What is no fault of the system or of the files is a bug, and stays what it is.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if is_peer_failure(error):
            raise
        cause: Exception = error
        refused = refusal(error)
        if refused is None or refused.errno == errno.ENOENT:
            try:
                _read_all(folder, trees)
            except Exception as plain:
                cause, refused = plain, refusal(plain)
            else:
                raise
        raise InputError(_reason(folder, cause, refused)) from error


def _reason(folder: Path, cause: Exception, refused: OSError | None) -> str:
    """Why a checkpoint cannot be read, and what to do."""
    if not folder.exists():
        return f"{folder}: was removed while it was read; run the same command again"
    if refused is None or refused.errno == errno.ENOENT:
        return _damaged(folder, _first_line(cause))
    file, advice = refused.filename or folder, "see to the disk or the system"
    if refused.errno in (errno.EACCES, errno.EPERM):
        advice = "let this user read it"
    elif refused.errno == errno.ENOMEM:
        advice = "end what else uses it, or use more devices (config.mesh)"
    return (
        f"{file}: {refused.strerror}; the checkpoint stays as it is: {advice}, and run "
        "the same command again"
    )


def _damaged(folder: Path, reason: str) -> str:
    return f"{folder}: damaged checkpoint ({reason}); what to do: docs/files.md"


def _read_all(folder: Path, trees: tuple[str, ...]) -> None:
    """Reads a checkpoint in the plainest way; raises whatever that does."""

    def fail(error: OSError) -> None:
        raise error

    for parent, _, names in os.walk(folder, onerror=fail):
        for name in names:
            content = (Path(parent) / name).read_bytes()
            if Path(parent).name == "array_metadatas":
                json.loads(content)  # read for arrays on devices only
    _read_about(folder)
    handler = ocp.StandardCheckpointHandler()
    for name in trees:
        item = epath.Path(folder / name)
        shapes = handler.metadata(item).tree
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)
        handler.restore(item, args=ocp.args.StandardRestore(target))


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


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    logging.debug("checkpoint", exc_info=error)
    return lines[0][:300] if lines else type(error).__name__
