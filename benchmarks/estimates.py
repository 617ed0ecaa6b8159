"""The table of docs/accelerators.md: what a training step costs on TPUs, as estimated.

    make setup-tpu-compiler
    python -m benchmarks.estimates [RECIPE@TOPOLOGY ... | --drop]

compiles the rows that are not of today's code, or the named ones, by --mode=compile: 2
to 30 minutes each. benchmarks/results/estimates.json keeps them, each with a digest of
the code that its program depends on; a test compares that with the code. --drop only
removes the rows that are of older code.
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

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results/estimates.json"
PAGE = ROOT / "docs/accelerators.md"
RECIPES = (
    *("coco_region", "coco_region:fast"),
    *("coco_grid", "coco_grid:fast"),
    *("f30k_grid_wsl", "f30k_grid_wsl:fast"),
)
TOPOLOGIES = ("v5e:2x4", "v6e:2x4", "v5e:4x4")
_HEADER = (
    "| config | topology | memory, GB a chip | FLOP a chip | sent, GB a chip | "
    "step, ms (of it waiting) | utilisation |\n|---|---|---|---|---|---|---|"
)


def stamp() -> str:
    """A digest of the code that makes a step's program, without comments and docs."""
    package = ROOT / "vse_jax"
    files = [*package.glob("models/*.py"), *package.glob("ops/*.py")]
    files += [
        package / f"{name}.py" for name in ("losses", "optimizer", "microbatches")
    ]
    files += [package / "distributed/mesh.py", *package.glob("planning/*.py")]
    files += [ROOT / f"configs/{name.partition(':')[0]}.py" for name in RECIPES]
    trees = [ast.parse(file.read_text()) for file in sorted(files)]
    train = ast.parse((package / "train.py").read_text())
    of_step = {"Trainer", "train_step"}
    trees.append(
        ast.Module([n for n in train.body if getattr(n, "name", "") in of_step], [])
    )
    digest = hashlib.sha256()
    for tree in trees:
        for node in ast.walk(tree):
            match getattr(node, "body", None):
                case [ast.Expr(ast.Constant()), *_] as body:  # a docstring
                    body.pop(0)
        digest.update(ast.dump(tree).encode())
    return digest.hexdigest()[:16]


def read() -> dict[str, dict[str, Any]]:
    """{RECIPE@TOPOLOGY: row} of today's code."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    today = stamp()
    return {name: row for name, row in rows.items() if row["stamp"] == today}


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
        "stamp": stamp(),
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
            cells = [recipe, topology, memory, "", "", "does not fit", ""]
            if row["step_s"] is not None:
                cells[3:] = [
                    f"{row['flops']:.2e}".replace("e+", "e"),
                    f"{row['sent'] / 1e9:.2f}",
                    f"{1e3 * row['step_s']:.1f} ({1e3 * row['waiting_s']:.1f})",
                    f"{row['utilisation']:.1%}".replace("%", " %"),
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
    rows = read()
    write(rows)
    every = [f"{r}@{t}" for t in TOPOLOGIES for r in RECIPES]
    for name in names or [name for name in every if name not in rows]:
        rows[name] = measure(*name.split("@"))
        write(rows)
        print(table({name: rows[name]}), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--drop"]:
        write(read())
    else:
        main(sys.argv[1:])
