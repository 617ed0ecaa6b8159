"""The study of poolings, except the trainings themselves."""

import json

import pytest

from studies import pooling, pooling_page, variants
from studies.ledger import Ledger
from tests.helpers.drafts import draft
from tests.helpers.runs import write_run
from vse_jax.base.errors import InputError
from vse_jax.command_line import override
from vse_jax.config import config_dict, flat_fields, save_config


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_a_variants_flags_give_its_config(name):
    config = config_dict(variants.recipe())
    assert override(config, variants.flags_of(name, 3)) == []
    fields = flat_fields(variants.recipe()) | variants.VARIANTS[name].changes
    assert flat_fields(config) == fields | {"seed": 3}
    assert flat_fields(variants.config_of(name, 3)) == fields | {"seed": 3}


def test_the_first_seed_of_all_poolings_comes_first():
    runs = list(variants.in_order())
    assert len(set(runs)) == len(runs)
    assert {name for name, _ in runs} == variants.VARIANTS.keys()
    poolings = [(name, seed) for name, seed in runs if name in variants.POOLINGS]
    assert runs[: len(poolings)] == poolings
    assert [seed for _, seed in poolings] == sorted(seed for _, seed in poolings)
    assert [name for name, seed in poolings if seed == 0] == list(variants.POOLINGS)


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The study with two variants and one seed, in a folder of its own.

    Its trainings are short: they leave what a run leaves, without training.
    """
    two = {
        name: variants.Variant(title, variants.VARIANTS[name].changes, (0,))
        for name, title in (("gpo", "GPO"), ("max", "maximum"))
    }
    monkeypatch.setattr(variants, "POOLINGS", two)
    monkeypatch.setattr(variants, "REASONS", {})
    for module in (variants, pooling, pooling_page):
        monkeypatch.setattr(module, "VARIANTS", two)
    monkeypatch.chdir(tmp_path)
    trained = []

    def train(name, seed):
        config = draft(variants.config_of(name, seed))
        config.embed_dim = 8
        config.text.vocab_size, config.text.layers = 16, 1
        config.text.hidden, config.text.heads, config.text.ffn = 16, 2, 16
        workdir = write_run(config, pooling.FOLDER / f"{name}_seed{seed}")
        rows = ({"step": step, "eval/dev/rsum": 90.0 + step} for step in (1, 2))
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (workdir / "metrics.jsonl").write_text(lines)
        (workdir / "eval_test.json").write_text('{"rsum": 95.0}')
        trained.append(name)

    monkeypatch.setattr(pooling, "_train", train)
    return trained


def test_only_what_the_ledger_lacks_is_trained(study, monkeypatch):
    pooling.main()
    assert study == ["gpo", "max"]
    gpo, maximum = Ledger(pooling_page.LEDGER, variants.recipe()).results
    assert (gpo.dev, gpo.test, gpo.changes) == ([91.0, 92.0], 95.0, {})
    weights = gpo.coefficients["image"]["49"]
    assert len(weights) == 49
    assert sum(weights) == pytest.approx(1, abs=1e-3)
    assert maximum.coefficients == {"image": None, "text": None}
    page = pooling_page.DOCUMENT.read_text()
    pooling_page.DOCUMENT.unlink()
    pooling.main()
    assert study == ["gpo", "max"]
    assert pooling_page.DOCUMENT.read_text() == page
    # Another machine has the committed ledger without its last run.
    monkeypatch.setattr(pooling, "_train", lambda name, seed: study.append(name))
    monkeypatch.setattr(pooling, "_read", lambda name, seed: maximum)
    first_run = pooling_page.LEDGER.read_text().splitlines(keepends=True)[:2]
    pooling_page.LEDGER.write_text("".join(first_run))
    pooling.main()
    assert study == ["gpo", "max", "max"]
    assert pooling_page.DOCUMENT.read_text() == page


def test_a_folder_of_another_recipe_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = draft(variants.config_of("gpo", 0))
    config.loss.margin = 0.3
    workdir = pooling.FOLDER / "gpo_seed0"
    workdir.mkdir(parents=True)
    save_config(config, workdir / "config.json")
    (workdir / "eval_test.json").write_text("{}")
    with pytest.raises(InputError, match=r"gpo_seed0: .* loss\.margin"):
        pooling._train("gpo", 0)


def test_a_run_that_was_preempted_preempts_the_study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "main.py"
    program.write_text("raise SystemExit(75)\n")
    with pytest.raises(SystemExit) as stop:
        pooling._train("gpo", 0)
    assert stop.value.code == 75
    program.write_text("raise SystemExit(1)\n")
    with pytest.raises(InputError, match="gpo_seed0: the run ended with exit code 1"):
        pooling._train("gpo", 0)
