"""--mode=index: the index of a folder of images, made or brought up to date."""

import time
import warnings
from pathlib import Path

import vse_jax
from vse_jax import AnyPath, Config, InputError, printable
from vse_search.commands import index_folder
from vse_search.encoder import Encoder
from vse_search.folders import check_folder
from vse_search.indexing import Report, check_images, update
from vse_search.store import Store

_LISTED = 50  # bad files


def index(config: Config, workdir: AnyPath, model: AnyPath | None = None) -> None:
    """Indexes config.search.pictures by the best model in `model`, or in `workdir`.

    Only new and changed images are encoded; files that are no readable images are
    listed and left out. What cannot be seen stays in the index.

    Raises:
        InputError: no folder or no images in it, a region model, an index of another
            model or folder, a broken one, another process writes to it, or more than a
            tenth of its images are gone.
    """
    c = config.search
    start = time.monotonic()
    # Pillow warns of odd metadata; an image is read or refused all the same.
    warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
    place = index_folder(config, workdir)
    folder = None if c.pictures is None else check_folder(Path(c.pictures))
    source, encoder = model or workdir, None
    if not Store.exists(place):
        if folder is None:
            raise InputError("config.search.pictures: needed to make an index")
        check_images(folder, c.exclude or ())  # or an empty index would be left
        encoder = _grid_model(config, source)
        Store.create(
            place,
            model=encoder.fingerprint,
            name=encoder.name,
            dim=encoder.dim,
            folder=folder,
        )
    with Store.open(place, read_only=False) as store:
        there = store.folder
        if folder not in (None, there) and there.exists():
            raise InputError(
                f"{place}: index of the images in {there}; name another "
                "--config.search.index for another folder"
            )
        report = update(
            store,
            encoder or _grid_model(config, source),
            folder=folder,
            exclude=c.exclude,
            forget=c.forget,
            max_pixels=c.max_pixels,
        )
        images = store.count()
    _tell(place, images, report, time.monotonic() - start)


def _grid_model(config: Config, folder: AnyPath) -> Encoder:
    model = vse_jax.model_of(config, folder)
    if model.takes_regions:
        raise InputError(
            f"{folder}: a region model takes features of regions, and images have "
            "none; index them by a grid model"
        )
    return model


def _tell(place: Path, images: int, report: Report, seconds: float) -> None:
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
    print(f"{name}: {images:,} images ({done}) in {seconds:.1f} s{passed}")
