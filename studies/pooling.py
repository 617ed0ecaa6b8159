"""Which pooling is best on features of a pretrained CNN? Trains with each, three seeds.

    make study          (hours on two cores; run it again to go on)

trains the recipe of configs/openmoji_cells.py with every variant of variants.py. A
finished run is a line of docs/lab/pooling_study.jsonl and is not made again; from that
file alone pooling_page.py writes docs/lab/pooling_study.md and its figures, after every
run.
The runs lie in runs/pooling/<variant>_seed<k>; one that was stopped goes on there.
"""

import json
import multiprocessing
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from studies import pooling_page
from studies.ledger import Ledger, Result
from studies.variants import VARIANTS, config_of, flags_of, in_order, recipe
from vse_jax.base.errors import InputError
from vse_jax.checkpoints.load import load_model
from vse_jax.command_line import errors_on_one_line, set_up_logging
from vse_jax.config import check_same_run, load_config
from vse_jax.distributed.preemption import EXIT_CODE, Preempted
from vse_jax.figures.coefficients import learned_coefficients
from vse_jax.metrics_logger import read_metrics
from vse_jax.models.build import merge_model
from vse_jax.models.gpo import GPO

FOLDER = Path("runs/pooling")


def run_missing(ledger: Ledger) -> None:
    """Trains what is not in the ledger yet; the page follows after each run.

    Raises:
        InputError: a run failed, or its folder holds another recipe's.
        Preempted: a run was told to stop (SIGTERM).
    """
    for name, seed in in_order():
        if ledger.find(name, VARIANTS[name].changes, seed) is None:
            _train(name, seed)
            ledger.add(_read(name, seed))
            pooling_page.write(ledger.results)


def _workdir(name: str, seed: int) -> Path:
    return FOLDER / f"{name}_seed{seed}"


def _train(name: str, seed: int) -> None:
    workdir = _workdir(name, seed)
    if (workdir / "eval_test.json").exists():  # stopped before it came into the ledger
        return check_same_run(config_of(name, seed), workdir / "config.json")
    command = [sys.executable, "main.py", "--config=configs/openmoji_cells.py"]
    command += [f"--workdir={workdir}", *flags_of(name, seed)]
    print(" ".join(["python", *command[1:]]), flush=True)
    code = subprocess.run(command, check=False).returncode
    if code == EXIT_CODE:
        raise Preempted
    if code:
        raise InputError(f"{workdir}: the run ended with exit code {code}")


def _read(name: str, seed: int) -> Result:
    workdir = _workdir(name, seed)
    rows = read_metrics(workdir)
    # A process of its own: this one must not hold devices while the runs train.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        coefficients = pool.submit(_coefficients, workdir).result()
    return Result(
        variant=name,
        seed=seed,
        changes=VARIANTS[name].changes,
        dev=[round(r["eval/dev/rsum"], 2) for r in rows if "eval/dev/rsum" in r],
        test=round(json.loads((workdir / "eval_test.json").read_text())["rsum"], 2),
        coefficients=coefficients,
    )


def _coefficients(workdir: Path) -> dict[str, dict[str, list[float]] | None]:
    """What Result.coefficients holds, of the best epoch of a run."""
    config = load_config(workdir / "config.json")
    loaded = load_model(config, workdir)
    vse = merge_model(loaded.graphdef, loaded.arrays)
    towers = ("image", "text")
    if not any(isinstance(getattr(vse, tower).gpool, GPO) for tower in towers):
        return dict.fromkeys(towers)
    return {
        tower: None
        if isinstance(found, str)
        else {str(n): [round(float(w), 5) for w in row] for n, row in found.items()}
        for tower, found in learned_coefficients(config, vse).items()
    }


def main() -> None:
    set_up_logging()
    ledger = Ledger(pooling_page.LEDGER, recipe())
    run_missing(ledger)
    pooling_page.write(ledger.results)


if __name__ == "__main__":
    with errors_on_one_line():
        main()
