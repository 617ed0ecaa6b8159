"""Checkpoints of a run. Orbax lives here.

    W/checkpoints/<step>/model/       parameters and running statistics
                         optimizer/   what else a restart needs; converted weights: none
                         data/        `TrainProgress`, and checksums of the arrays

The newest checkpoint is the one to go on from. It names the best one, which is kept
beside it, or is the same. A checkpoint appears under its number only when it is whole
(Orbax renames it; in a bucket its last object is commit_success.txt), and others go
only after it has come: a run killed at any moment, or a disk that fills up, leaves a
usable one and the best that it names.
"""

import contextlib
import dataclasses
import errno
import json
import os
import time
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
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from vse_jax.base.buckets import BucketPath
from vse_jax.base.errors import InputError, refusal
from vse_jax.base.files import AnyPath, write_atomically
from vse_jax.base.trees import flatten
from vse_jax.distributed.cluster import is_peer_failure
from vse_jax.distributed.multihost import on_process_zero

_PROGRESS = "metadata"  # the JSON file of the item `data`
_ASKED_EVERY = 10  # steps: whether it is time to save
CONVERTED = 0  # step of the weights that convert_torch_weights.py made


@dataclass
class TrainProgress:
    """How far a run has come: the item `data` of its checkpoints.

    Attributes:
        step: finished steps.
        validated: how many they were at the last validation.
        best_rsum: of the best validation on dev; −1: none yet.
        best_step: finished steps at the best validation; None: none yet.
        best_epoch: finished epochs then.
        first_step, first_epoch: steps and finished epochs when the data last changed.
        data: digests of the data (data/digests.py); of converted weights not known.
    """

    step: int = 0
    validated: int = 0
    best_rsum: float = -1.0
    best_step: int | None = None
    best_epoch: int = 0
    first_step: int = 0
    first_epoch: int = 0
    data: dict[str, Any] = dataclasses.field(default_factory=dict)


def has_checkpoint(workdir: AnyPath) -> bool:
    """Whether a run has saved anything in its folder."""
    found = (workdir / "checkpoints").glob("*")
    return any(path.name.isdigit() for path in found)


class SaveClock:
    """Says after which steps `minutes` have passed since the last save; None: never.

    Process 0 decides; to ask it is a collective, so several processes rarely do.
    """

    def __init__(self, minutes: float | None):
        self._minutes = minutes
        self.restart()

    def restart(self) -> None:
        """A save begins."""
        self._begin = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Whether to save after `step` steps; all processes call it at each step."""
        minutes = self._minutes
        if minutes is None or (jax.process_count() > 1 and step % _ASKED_EVERY):
            return False
        return on_process_zero(lambda: time.monotonic() - self._begin >= 60 * minutes)


@dataclass
class _NamedStep:
    """Orbax preserves this step.

    Its own BestN compares the metrics that checkpoints were saved with, also where the
    data have changed in between, and of equal ones it takes the later.
    """

    step: int | None = None

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        return [checkpoint.step == self.step for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints below `workdir`; use it in a `with` statement.

    Args:
        workdir: the run's folder; created when missing.
        keep: newest checkpoints that stay.
        read_only: change nothing there, neither create folders nor clean up, so that a
            run that is going on may be looked at.
        to_copy: what is saved in this local folder will be copied into a bucket.
    """

    def __init__(
        self,
        workdir: AnyPath,
        keep: int = 1,
        read_only: bool = False,
        to_copy: bool = False,
    ):
        self._folder = (workdir / "checkpoints").absolute()
        self._best = _NamedStep()
        kept = [ocp.checkpoint_managers.LatestN(keep), self._best]
        mode = ocp.options.AtomicityMode.AUTO
        if isinstance(self._folder, BucketPath) or to_copy:
            mode = ocp.options.AtomicityMode.COMMIT_FILE
        if isinstance(self._folder, BucketPath):
            _prepare_for_buckets()
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(kept),
                read_only=read_only,
                # Left half-written by a killed run.
                cleanup_tmp_directories=not read_only,
                atomicity_options=ocp.options.AtomicityOptions(mode=mode),
            ),
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        """Ends Orbax's threads, which must not outlive the interpreter."""
        hidden: tuple = (Exception,)  # it would only hide the error before it
        try:
            if kind is None:
                self.wait()
                hidden = ()
        finally:
            with contextlib.suppress(*hidden):
                self._manager.close()

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def holds_converted(self) -> bool:
        """Whether all that is there are weights that convert_torch_weights.py made."""
        optimizer = self._folder / str(CONVERTED) / "optimizer"
        return self.latest_step() == CONVERTED and not optimizer.exists()

    # ---- Save ------------------------------------------------------------------------

    def save(self, model, optimizer, progress: TrainProgress) -> None:
        """Starts writing; `model` and `optimizer` may be donated once this returns.

        Args:
            model: {"params", "batch_stats"}.
            optimizer: what else the train state holds; None: the model is converted.
            progress: of the run; names the checkpoint to keep as the best.

        Raises:
            InputError: this or the previous save could not be written.
        """
        # One after the other: Orbax numbers its barriers as its threads come to them,
        # and with two saves going on processes might wait for each other for ever.
        self.wait()
        trees = {"model": model}
        trees |= {} if optimizer is None else {"optimizer": optimizer}
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        checksums = {name: _checksum(tree) for name, tree in trees.items()}
        about = dataclasses.asdict(progress) | {"checksums": checksums}
        self._best.step = progress.best_step
        with self._failures_named():
            saved = self._manager.save(
                progress.step,
                args=ocp.args.Composite(**items, data=ocp.args.JsonSave(about)),
            )
        if not saved:  # Orbax skips a step that is not after the latest one
            raise InputError(
                f"{self._folder}: step {progress.step} was not saved, because step "
                f"{self.latest_step()} is there"
            )

    def update(self, progress: TrainProgress) -> None:
        """Replaces what the newest checkpoint says of the run; in one process only."""
        step = self.latest_step()
        assert step is not None
        before = self._about(step)
        after = before | dataclasses.asdict(progress)
        if after != before:
            file = self._folder / str(step) / "data" / _PROGRESS
            write_atomically(file, json.dumps(after).encode())

    def wait(self) -> None:
        """Returns when everything saved is on disk."""
        with self._failures_named():
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _failures_named(self) -> Iterator[None]:
        """Full disk, no permission, …: one line; earlier ones are untouched."""
        try:
            yield
        except Exception as error:
            if refusal(error) is None:
                raise
            raise InputError(
                f"{self._folder}: could not save ({_first_line(error)}); "
                f"the last good checkpoint there stays usable"
            ) from error

    # ---- Restore ---------------------------------------------------------------------

    def progress(self) -> TrainProgress | None:
        """What the newest checkpoint says of the run; None if there is none.

        Raises:
            InputError: it cannot be read (says why), it is of another version, or the
                best checkpoint that it names is not there.
        """
        step = self.latest_step()
        if step is None:
            return None
        fields = self._about(step)
        known = {"checksums"} | {f.name for f in dataclasses.fields(TrainProgress)}
        if fields.keys() != known:
            raise InputError(
                f"{self._folder / str(step)}: written by another version of vse_jax; "
                "finish the run with that version"
            )
        del fields["checksums"]
        progress = TrainProgress(**fields)
        best = progress.best_step
        if best is not None and best not in self._manager.all_steps():
            raise InputError(
                f"{self._folder}: {step} says that step {best} was the best, but it is "
                f"not there; bring it back, or remove {self._folder} to start again"
            )
        return progress

    def restore_latest(self, model, optimizer):
        """(model, optimizer) of the newest checkpoint.

        The arguments are abstract trees with shardings: without them, list indices
        would become strings and long lists permuted (0, 1, 10, 2, …).

        Raises:
            InputError: it cannot be read (says why), or is of another model or version.
        """
        step = self.latest_step()
        assert step is not None
        restored = self._restore(step, {"model": model, "optimizer": optimizer})
        return restored["model"], restored["optimizer"]

    def restore_best(self, model) -> tuple[Any, TrainProgress]:
        """(model, the run's progress) of the best checkpoint.

        A run that goes on may replace it meanwhile: then of its new one. `model` is an
        abstract tree with shardings.

        Raises:
            InputError: there is none, it cannot be read (says why), or it is of another
                model.
        """
        while (latest := self.latest_step()) is not None:
            try:
                progress = self.progress()
                if progress is None or progress.best_step is None:
                    break
                restored = self._restore(progress.best_step, {"model": model})
                return restored["model"], progress
            except InputError:
                self._manager.reload()
                if self.latest_step() in (latest, None):
                    raise
        raise InputError(f"{self._folder}: no best checkpoint; train first")

    def _about(self, step: int) -> dict[str, Any]:
        """The item `data` of a checkpoint, with the checksums of its arrays."""
        folder = self._folder / str(step)
        with _explained(folder, ("model",)):
            return _read_about(folder)

    def _restore(self, step: int, trees: dict[str, Any]) -> dict[str, Any]:
        folder = self._folder / str(step)
        args = {name: ocp.args.StandardRestore(tree) for name, tree in trees.items()}
        with _explained(folder, tuple(trees)):
            # Not by the manager, which reads about all items of the step.
            handler = ocp.StandardCheckpointHandler()
            for name, tree in trees.items():
                stored = handler.metadata(epath.Path(folder / name)).tree
                _check_fits(folder, stored, tree)
            restored = self._manager.restore(step, args=ocp.args.Composite(**args))
        checksums = self._about(step).get("checksums")
        for name in trees:
            if checksums is None or checksums.get(name) != _checksum(restored[name]):
                raise InputError(_damaged(folder, "its arrays are not those saved"))
        return {name: restored[name] for name in trees}


def _check_fits(folder: AnyPath, stored, target) -> None:
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


def _checksum(tree) -> int:
    """The sum of the bits of all arrays: a damaged file may still decode."""
    total = 0
    for leaf in jax.tree.leaves(tree):
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


def _read_about(folder: AnyPath) -> dict[str, Any]:
    about = json.loads((folder / "data" / _PROGRESS).read_bytes())
    if not isinstance(about, dict):
        raise ValueError(f"data/{_PROGRESS} is no JSON object")
    return about


# ---- Why a checkpoint could not be read ----------------------------------------------


@contextlib.contextmanager
def _explained(folder: AnyPath, trees: tuple[str, ...]) -> Iterator[None]:
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
        cause, refused = error, refusal(error)
        if refused is None or refused.errno == errno.ENOENT:
            try:
                _read_all(folder, trees)
            except Exception as plain:
                cause, refused = plain, refusal(plain)
            else:
                raise
        if not folder.exists():
            reason = (
                f"{folder}: was removed while it was read; run the same command again"
            )
        elif refused is None or refused.errno == errno.ENOENT:
            reason = _damaged(folder, _first_line(cause))
        else:
            advice = {
                errno.EACCES: "let this user read it",
                errno.EPERM: "let this user read it",
                errno.ENOMEM: "end what else uses it, or use more devices "
                "(config.mesh)",
            }.get(refused.errno or 0, "see to the disk or the system")
            reason = (
                f"{refused.filename or folder}: {refused.strerror}; the checkpoint "
                f"stays as it is: {advice}, and run the same command again"
            )
        raise InputError(reason) from error


def _damaged(folder: AnyPath, reason: str) -> str:
    return f"{folder}: damaged checkpoint ({reason}); what to do: docs/files.md"


def _read_all(folder: AnyPath, trees: tuple[str, ...]) -> None:
    """Reads a checkpoint in the plainest way; raises whatever that does."""

    def fail(error: OSError) -> None:
        raise error

    if isinstance(folder, BucketPath):
        files: list[AnyPath] = list(folder.files())
    else:
        files = [
            Path(parent) / name
            for parent, _, names in os.walk(folder, onerror=fail)
            for name in names
        ]
    for file in files:
        content = file.read_bytes()
        if file.parent.name == "array_metadatas":
            json.loads(content)  # read for arrays on devices only
    _read_about(folder)
    handler = ocp.StandardCheckpointHandler()
    for name in trees:
        item = epath.Path(folder / name)
        shapes = handler.metadata(item).tree
        target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)
        handler.restore(item, args=ocp.args.StandardRestore(target))


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    logging.debug("checkpoint", exc_info=error)
    return lines[0][:300] if lines else type(error).__name__


# ---- Buckets -------------------------------------------------------------------------


def _prepare_for_buckets() -> None:
    """Lets Orbax write arrays to s3://, and TensorStore give up after some minutes.

    Orbax knows of gs:// only, where TensorStore does both; it gives it the address by
    the two functions that are replaced here, and tells it nothing of retries, of which
    TensorStore's own are 32. tests/buckets_test.py says if another version has others.
    """

    def address(path: str) -> dict[str, Any]:
        scheme, _, rest = path.partition("://")
        if scheme != "s3":
            return of_gcs(path)
        bucket, _, key = rest.partition("/")
        spec = {"driver": "s3", "bucket": bucket, "path": key}
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):  # as boto reads them
            if name in os.environ:
                return spec | {"endpoint": os.environ[name]}
        return spec

    def normalized(path: str) -> str:
        return path if "://" in path else of_file(path)

    if getattr(gcs_utils.get_kvstore_for_gcs, "__module__", None) == __name__:
        return
    of_gcs = gcs_utils.get_kvstore_for_gcs
    of_file = tensorstore_utils._normalize_path
    gcs_utils.get_kvstore_for_gcs = address
    tensorstore_utils._normalize_path = normalized
    tensorstore_utils._use_gcs_driver = lambda path: "://" in path
    for service in ("gcs", "s3"):
        retries = {"max_retries": 8, "initial_delay": "1s", "max_delay": "16s"}
        for context in (
            tensorstore_utils._BASE_TS_CONTEXT,
            tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT,
        ):
            context[f"{service}_request_retries"] = retries
