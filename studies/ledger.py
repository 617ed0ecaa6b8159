"""The finished runs of a study, in a file that is committed.

    {"recipe": {"batch_size": 128, …}}
    {"variant": "gpo", "seed": 0, "changes": {}, "dev": […], "test": …, …}
    …

The first line is the recipe that all of them share, then comes a line a run. A run that
stands here is not made again, on this machine or on another one.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from vse_jax.base.errors import InputError
from vse_jax.base.files import parse_object, read_lines, write_atomically
from vse_jax.config import FIELDS, HOST, Config, flat_fields

# What decides nothing about a run's results, beside what a host may change.
_FREE = ("seed", "log_every", "debug", "profile", "checkpoint", "search", "hub")


@dataclass(frozen=True)
class Result:
    """What a run reached.

    Attributes:
        variant: its name in the study.
        seed: of the run.
        changes: the fields in which it differs from the recipe, with their values.
        dev: rsum on dev after each epoch.
        test: rsum on test, of the epoch that is best on dev.
        coefficients: of its GPOs at that epoch: {"image": {"49": [weight of the largest
            value, …], …}, …}; None where a tower has another pooling.
    """

    variant: str
    seed: int
    changes: dict[str, Any]
    dev: list[float]
    test: float
    coefficients: dict[str, dict[str, list[float]] | None]


class Ledger:
    """The runs of one recipe.

    Args:
        path: of the file; it need not be there yet.
        recipe: the config that the study's variants change.

    Raises:
        InputError: the file is damaged, or of another recipe.
    """

    def __init__(self, path: Path, recipe: Config):
        self.path = path
        # As JSON gives it back: tuples as lists.
        self._recipe = json.loads(json.dumps(_deciding(flat_fields(recipe))))
        self.results = self._read()

    def find(self, variant: str, changes: dict[str, Any], seed: int) -> Result | None:
        """The run of these fields and this seed.

        Raises:
            InputError: there is one of this name, but with other fields.
        """
        for result in self.results:
            if (result.variant, result.seed) == (variant, seed):
                if result.changes != json.loads(json.dumps(changes)):
                    raise InputError(
                        f"{self.path}: {variant!r} was run with {result.changes}, not "
                        f"with {changes}; delete its lines, or rename the new one"
                    )
                return result
        return None

    def add(self, result: Result) -> None:
        """Adds a run to what the file holds by now, whole or not at all.

        In the place of one with its variant and seed, which another process may have
        added.
        """
        added = (result.variant, result.seed)
        others = (r for r in self._read() if (r.variant, r.seed) != added)
        self.results = [*others, result]
        lines = [{"recipe": self._recipe}, *map(asdict, self.results)]
        text = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, text.encode())

    def _read(self) -> list[Result]:
        if not self.path.exists():
            return []
        first, *rest = read_lines(self.path) or [""]
        there = parse_object(first, f"{self.path}, line 1").get("recipe")
        if not isinstance(there, dict):
            raise InputError(f"{self.path}, line 1: holds no recipe")
        # A field that is newer than the file had its default.
        defaults = {name: spec.default for name, spec in FIELDS.items()}
        there = json.loads(json.dumps(_deciding(defaults))) | there
        differing = [
            f"{field} ({there.get(field)!r} there, {self._recipe.get(field)!r} here)"
            for field in sorted(there.keys() | self._recipe.keys())
            if there.get(field) != self._recipe.get(field)
        ]
        if differing:
            raise InputError(
                f"{self.path}: holds runs of another recipe; differing fields: "
                + ", ".join(differing)
            )
        lines = enumerate(rest, start=2)
        return [_result(f"{self.path}, line {number}", line) for number, line in lines]


def _deciding(flat: dict[str, Any]) -> dict[str, Any]:
    return {
        field: value
        for field, value in flat.items()
        if FIELDS[field].free < HOST and field.partition(".")[0] not in _FREE
    }


def _result(where: str, line: str) -> Result:
    content = parse_object(line, where)
    if wrong := content.keys() ^ {field.name for field in fields(Result)}:
        names = ", ".join(sorted(wrong))
        raise InputError(f"{where}: fields missing or unknown: {names}")
    dev, numbers = content["dev"], (int, float)  # and no bool
    if not (isinstance(dev, list) and dev and all(type(x) in numbers for x in dev)):
        raise InputError(f"{where}: dev is no list of numbers")
    if type(content["test"]) not in numbers:
        raise InputError(f"{where}: test is no number")
    return Result(**content)
