"""--mode=index: the index of a folder of pictures, made or brought up to date."""

import contextlib
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import vse_jax
from vse_jax import Config, InputError, printable
from vse_search.encoder import Encoder
from vse_search.indexing import Report, check_model, check_pictures, update
from vse_search.opening import index_folder
from vse_search.pictures import check_folder
from vse_search.store import Store

_LISTED = 50  # bad files


def index(config: Config, workdir: Path) -> None:
    """Indexes config.search.pictures by the best model in `workdir`.

    Only new and changed pictures are encoded; files that are no readable pictures are
    listed and left out. What cannot be seen stays in the index.

    Raises:
        InputError: no folder or no pictures in it, a region model, an index of another
            model or folder, a broken one, another process writes to it, or more than a
            tenth of its pictures are gone.
    """
    c = config.search
    start = time.monotonic()
    # What Pillow has to say of odd notes in a file concerns nobody: it is read or not.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    place = index_folder(config, workdir)
    folder = None if c.pictures is None else check_folder(Path(c.pictures))
    if folder is None and not Store.exists(place):
        raise InputError("config.search.pictures: needed to make an index")
    with _opened(place, folder, config, workdir) as (store, model):
        report = update(
            store,
            model,
            folder=folder,
            exclude=c.exclude,
            forget=c.forget,
            max_pixels=c.max_pixels,
            batch=model.batch_size,
        )
        pictures = store.count()
    _tell(place, pictures, report, time.monotonic() - start)


@contextlib.contextmanager
def _opened(
    place: Path, folder: Path | None, config: Config, workdir: Path
) -> Iterator[tuple[Store, Encoder]]:
    """The index at `place`, which is made where there is none, and its model."""
    model = None
    if folder is not None and not Store.exists(place):
        # Or an empty index would be left.
        check_pictures(folder, config.search.exclude or ())
        model = _grid_model(config, workdir)
        Store.create(
            place,
            model=model.fingerprint,
            name=model.name,
            dim=model.dim,
            folder=folder,
        )
    with Store.open(place, read_only=False) as store:
        there = store.folder
        if folder not in (None, there) and there.exists():
            raise InputError(
                f"{place}: index of the pictures in {there}; name another "
                "--config.search.index for another folder"
            )
        model = model or _grid_model(config, workdir)
        check_model(store, model)
        yield store, model


def _grid_model(config: Config, workdir: Path) -> Encoder:
    model = vse_jax.model_of(config, workdir)
    if model.takes_regions:
        raise InputError(
            f"{workdir}: a region model takes features of regions, and pictures have "
            "none; index them by a grid model"
        )
    return model


def _tell(place: Path, pictures: int, report: Report, seconds: float) -> None:
    """The summary, after the bad files with their reasons."""
    for pattern in report.unmet:
        print(f"config.search.exclude: {pattern!r} leaves nothing out")
    for path, reason in report.bad[:_LISTED]:
        print(f"left out: {printable(f'{path}: {reason}')}")
    if len(report.bad) > _LISTED:
        print(f"left out: {len(report.bad) - _LISTED:,} more")
    kinds = ("added", "changed", "renamed", "removed", "duplicates", "unseen")
    counts = {kind: getattr(report, kind) for kind in kinds} | {"bad": len(report.bad)}
    done = ", ".join(f"{n:,} {kind}" for kind, n in counts.items() if n) or "no change"
    passed = f"; passed over: {told}" if (told := report.passed.told()) else ""
    name = printable(str(place))
    print(f"{name}: {pictures:,} pictures ({done}) in {seconds:.1f} s{passed}")
