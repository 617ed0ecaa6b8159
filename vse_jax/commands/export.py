"""--mode=export: a data root in the published layout, written as records.

Run again, it checks every file against its SHA-256 and writes only what is missing,
damaged or made from other data.
"""

from pathlib import Path

from vse_jax.base.errors import InputError, check_choice
from vse_jax.base.files import write_atomically
from vse_jax.config import Config, takes_regions
from vse_jax.data.dataset import Split, claim_root, read_splits
from vse_jax.data.export import blank_index, is_good, write_array_record, write_tfds
from vse_jax.data.records.index import FOLDERS, FORMATS, Index, list_names, read_index


def export(config: Config) -> None:
    """Writes every split of config.data.root as records, below config.data.export_to.

    config.data.format says in which form; 'folder', the form that is read, writes both.

    Raises:
        InputError: bad data, a place that is no local folder, or one that holds another
            data set or the export of another kind of images.
    """
    check_choice("config.data.format", config.data.format, ("folder", *FORMATS))
    if "://" in config.data.root:
        raise InputError(
            f"config.data.root: {config.data.root}: only a local folder is exported"
        )
    forms: tuple[str, ...] = FORMATS
    if config.data.format != "folder":
        forms = (config.data.format,)
    source = config.copy_and_resolve_references()
    source.data.format = "folder"
    splits = read_splits(source, _split_names(source))
    target = _claim_target(config, splits)
    plans = [(split, blank_index(config, split, target)) for split in splits]
    _check_kinds(target, plans)
    for form in forms:
        folder = target / FOLDERS[form]
        whole = [is_good(folder, split, index) for split, index in plans]
        if form == "array_record":
            for plan, good in zip(plans, whole, strict=True):
                if not good:
                    write_array_record(folder, *plan)
        elif not all(whole):
            write_tfds(folder, plans)
            whole = [False] * len(plans)  # TFDS writes a data set as a whole
        for split, good in zip(splits, whole, strict=True):
            _print_summary(folder, split, "checked" if good else "written")


def _split_names(config: Config) -> list[str]:
    precomp = Path(config.data.root) / "precomp"
    needed = ["_ids.txt", "_caps.txt"]
    if takes_regions(config.image):
        needed.append("_ims.npy")
    names = [
        name
        for name in sorted(p.name[:-8] for p in precomp.glob("*_ids.txt"))
        if all((precomp / f"{name}{end}").is_file() for end in needed)
    ]
    if not names:
        raise InputError(f"{precomp}: no split with {', '.join(needed)} to export")
    return names


def _claim_target(config: Config, splits: list[Split]) -> Path:
    """The folder to export to, with the splits' lists in it."""
    root, target = Path(config.data.root), Path(config.data.root)
    if config.data.export_to is not None:
        target = Path(config.data.export_to)
        if "://" in config.data.export_to:
            raise InputError(
                f"config.data.export_to: {config.data.export_to}: export to a local "
                "folder, then upload it"
            )
    if target.resolve() == root.resolve():
        return root
    claim_root(target, str(root.resolve()), "config.data.export_to")
    (target / "precomp").mkdir(exist_ok=True)
    for split in splits:
        for name in list_names(split.name):
            path = Path("precomp", name)
            write_atomically(target / path, (root / path).read_bytes())
    return target


def _check_kinds(target: Path, plans: list[tuple[Split, Index]]) -> None:
    """Raises InputError where there is an export of the other kind of images."""
    for form in FORMATS:
        for split, planned in plans:
            path = target / FOLDERS[form] / f"{split.name}.json"
            try:
                kind = read_index(path).kind
            except InputError:  # none, or a damaged one, which is written again
                continue
            if kind != planned.kind:
                raise InputError(
                    f"{path}: an export of image.kind {kind!r}; name another folder "
                    "with config.data.export_to"
                )


def _print_summary(folder: Path, split: Split, done: str) -> None:
    index = read_index(folder / f"{split.name}.json")
    size = sum(file.size for file in index.files) / 1e6
    print(
        f"{folder}: {split.name}: {index.images:,} images, shards: "
        f"{len(index.shards)}, {size:,.1f} MB, {done}"
    )
