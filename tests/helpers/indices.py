"""Indices of pictures that are not there, for tests of stores and engines."""

from pathlib import Path

import numpy as np

from vse_search.store import File, NewImage, Store

COUNT, DIM = 200, 16


def new(path: str, sha256: str = "", taken=None, camera=None) -> NewImage:
    return NewImage(File(path, 10, 5, sha256 or path), 4, 3, taken, camera)


def unit_vectors() -> np.ndarray:
    """float32 [COUNT, DIM]."""
    vectors = np.random.default_rng(0).standard_normal((COUNT, DIM), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_index(folder: Path) -> Path:
    """Picture n + 1 has vector n; every tenth lies in ten/, cameras take turns."""
    path = folder / "index"
    Store.create(path, model="m", name="model", dim=DIM, folder=folder)
    with Store.open(path, read_only=False) as store:
        store.add(
            [
                new(f"{'ten/' if n % 10 == 0 else ''}{n:03}.jpg", camera="AB"[n % 2])
                for n in range(COUNT)
            ],
            unit_vectors(),
        )
    return path
