"""The table of docs/planning.md: what a training step costs on TPUs, as estimated.

    make setup-tpu-compiler
    python -m benchmarks.estimates [RECIPE@TOPOLOGY ... | --drop]

brings the rows up to date, or compiles the named ones, by --mode=compile: 2 to 30
minutes each. benchmarks/results/estimates.json keeps them, each with a digest of the
code that its program depends on; a test compares that with the code. A row of older
code whose program is still the same only gets the new digest: the program is lowered,
which takes seconds, not compiled. --drop only removes the rows of older code.
"""

import ast
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from vse_jax.base.files import write_atomically
from vse_jax.command_line import final_config, read_config
from vse_jax.planning.report import (
    place_run,
    program_digest,
    programs,
    usual_bucket,
)

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/estimates.json"
PAGE = ROOT / "docs/planning.md"
RECIPES = (
    *("coco_region", "coco_region:fast"),
    *("coco_grid", "coco_grid:fast"),
    *("f30k_grid_wsl", "f30k_grid_wsl:fast"),
)
# Of 25 epochs: five captions of each of 113,287 and of 29,000 images, 128 a step.
STEPS = {"coco": 25 * 4425, "f30k": 25 * 1132}
TOPOLOGIES = ("v5e:2x4", "v6e:2x4", "v5e:4x4")
_HEADER = (
    "| config | topology | memory, GB a chip | FLOP a chip | sent, GB a chip | "
    "step, ms (of it waiting) | utilisation | 25 epochs, h |\n"
    "|---|---|---|---|---|---|---|---|"
)


def _digest(trees: list[ast.AST]) -> str:
    """Of code, without comments and docstrings."""
    digest = hashlib.sha256()
    for tree in trees:
        for node in ast.walk(tree):
            match getattr(node, "body", None):
                case [ast.Expr(ast.Constant()), *_] as body:  # a docstring
                    body.pop(0)
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]


def _parsed(path: Path, names: tuple[str, ...] = ()) -> ast.Module:
    """A file's code, or that of its classes and functions with these names."""
    tree = ast.parse(path.read_text())
    if names:
        tree.body = [n for n in tree.body if getattr(n, "name", "") in names]
    return tree


def sources() -> str:
    """A digest of the code that makes a step's program."""
    package = ROOT / "vse_jax"
    files = [*package.glob("models/*.py"), *package.glob("ops/*.py")]
    files += [
        package / f"{name}.py"
        for name in ("losses", "optimizer", "microbatches", "train_step")
    ]
    files += [package / "distributed/mesh.py", ROOT / "configs/common.py"]
    files += [ROOT / f"configs/{name.partition(':')[0]}.py" for name in RECIPES]
    return _digest([_parsed(file) for file in sorted(files)])


def reading() -> str:
    """A digest of the code that makes figures of a compiled program."""
    planning = ROOT / "vse_jax/planning"
    files = [_parsed(planning / f"{name}.py") for name in ("program", "topology")]
    return _digest([*files, _parsed(planning / "report.py", ("_compiled",))])


def read() -> dict[str, dict[str, Any]]:
    """{RECIPE@TOPOLOGY: row}, those of older code among them."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def today() -> dict[str, str]:
    """What a row of today's code has."""
    return {"sources": sources(), "reading": reading()}


def program(recipe: str, topology: str) -> str:
    """The digest of a recipe's training step, which is lowered for it."""
    name, colon, variant = recipe.partition(":")
    values = read_config(f"configs/{name}.py{colon}{variant}")
    config = final_config(values, ["--config.data.root=/absent"])
    config, place = place_run(config, topology)
    usual = usual_bucket(config, len(place.devices))
    _, lower = next(programs(config, place, usual, False))
    return program_digest(lower())


def write(rows: dict[str, dict[str, Any]]) -> None:
    """Keeps the rows, and shows them on the page."""
    write_atomically(RESULTS, (json.dumps(rows, indent=1) + "\n").encode())
    write_atomically(PAGE, in_page(PAGE.read_text(), rows).encode())


def measure(recipe: str, topology: str) -> dict[str, Any]:
    """A row: what --mode=compile says of the training step."""
    name, colon, variant = recipe.partition(":")
    with tempfile.TemporaryDirectory() as folder:
        config = f"--config=configs/{name}.py{colon}{variant}"
        command = [sys.executable, "main.py", config, f"--workdir={folder}"]
        command += ["--mode=compile", f"--topology={topology}"]
        # (Exit code 1 where a program does not fit; the file is there.)
        subprocess.run([*command, "--config.data.root=/absent"], cwd=ROOT, check=False)
        (file,) = Path(folder).glob("compile_*.json")
        found = json.loads(file.read_text())
    step = found["programs"][0]
    estimate = step.get("estimate", {})
    return {
        **today(),
        "program": step.get("digest"),
        "memory": found["device_memory_bytes"],
        "peak": step["peak_bytes"],
        "flops": step.get("flops"),
        "sent": sum(step.get("sent_bytes", {}).values()),
        "step_s": estimate.get("step_s"),
        "waiting_s": estimate.get("of_it_waiting_s"),
        "utilisation": estimate.get("utilisation"),
    }


def table(rows: dict[str, dict[str, Any]]) -> str:
    """In Markdown, in the order of the recipes; rows that were not compiled are out."""
    lines = [_HEADER]
    for recipe in RECIPES:
        for topology in TOPOLOGIES:
            row = rows.get(f"{recipe}@{topology}")
            if row is None:
                continue
            memory = f"{row['peak'] / 1e9:.2f} of {row['memory'] / 1e9:.1f}"
            cells = [recipe, topology, memory, "", "", "does not fit", "", ""]
            if row["step_s"] is not None:
                hours = STEPS[recipe.partition("_")[0]] * row["step_s"] / 3600
                cells[3:] = [
                    f"{row['flops']:.2e}".replace("e+", "e"),
                    f"{row['sent'] / 1e9:.2f}",
                    f"{1e3 * row['step_s']:.1f} ({1e3 * row['waiting_s']:.1f})",
                    f"{row['utilisation']:.1%}".replace("%", " %"),
                    f"{hours:.1f}",
                ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def in_page(page: str, rows: dict[str, dict[str, Any]]) -> str:
    """The page with the rows in place of its table."""
    before, header, after = page.partition(_HEADER)
    assert header, f"{PAGE}: no table of estimates"
    _, _, rest = after.partition("\n\n")
    return before + table(rows) + "\n" + rest


def main(names: list[str]) -> None:
    rows, now = read(), today()
    for name in names or list(rows):
        row, where = rows.get(name), name.split("@")
        if row and not names:
            if now.items() <= row.items():
                continue
            if row["reading"] == now["reading"] and row["program"] == program(*where):
                rows[name] = row | now
                write(rows)
                print(f"{name}: the same program", flush=True)
                continue
        rows[name] = measure(*where)
        write(rows)
        print(table({name: rows[name]}), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--drop"]:
        now = today().items()
        write({name: row for name, row in read().items() if now <= row.items()})
    else:
        main(sys.argv[1:])
