"""Training from a whole model: what it knew before, after, and between the two."""

import json

import numpy as np
import pytest

from tests.helpers import siglip, tiny
from tests.helpers.drafts import draft
from vse_jax.base.errors import InputError
from vse_jax.base.trees import flatten
from vse_jax.checkpoints.finetuning import read_report
from vse_jax.checkpoints.load import load_model
from vse_jax.commands.evaluate import evaluate
from vse_jax.commands.interpolate import interpolate
from vse_jax.commands.push import push
from vse_jax.config import load_config
from vse_jax.metrics_logger import read_metrics
from vse_jax.train import train


@pytest.fixture(scope="module")
def start(tiny_root, tmp_path_factory):
    """A run of one epoch: the model that others are fine-tuned from."""
    config = tiny.quick(draft(tiny.get_config(str(tiny_root))))
    config.num_epochs = 1
    folder = tmp_path_factory.mktemp("start") / "run"
    with pytest.MonkeyPatch.context() as patch:
        without_figures(patch)
        train(config, folder)
    return folder


def without_figures(patch):
    for name in ("train.plot_curves", "commands.evaluate.plot_retrieval"):
        patch.setattr(f"vse_jax.{name}", lambda *_, **__: None)


def recipe(tiny_root):
    config = tiny.quick(draft(tiny.get_config(str(tiny_root))))
    config.num_epochs, config.data.dev_captions = 1, 60
    config.eval.retention.name = "tiny"
    return config


@pytest.fixture(scope="module")
def tuned(start, tiny_root, tmp_path_factory):
    """Four steps, with a stop in between, so large that they do harm."""
    config = recipe(tiny_root)
    config.optimizer.learning_rate = 0.3
    folder = tmp_path_factory.mktemp("tuned") / "run"
    said = []
    with pytest.MonkeyPatch.context() as patch:
        without_figures(patch)
        warning = "vse_jax.checkpoints.finetuning.logging.warning"
        patch.setattr(warning, lambda *args: said.append(args[0] % args[1:]))
        for config.max_steps, model in ((2, start), (4, None)):
            config.weights = None if model else str(start)
            train(config, folder, model=model)
    return folder, said


def report_of(folder):
    return json.loads((folder / "finetuning.json").read_text(encoding="utf-8"))


def test_the_start_is_scored_before_the_first_step_and_what_came_of_it(
    start, tuned, tiny_root, tmp_path
):
    folder, _ = tuned
    first, *others = read_metrics(folder)
    rows = [first, *others]
    before = {
        name: [row for row in rows if f"eval/{name}/rsum" in row]
        for name in ("dev", "retention")
    }
    assert [row["step"] for row in before["dev"]] == [0, 2, 4]
    assert [row["step"] for row in before["retention"]] == [0]  # not at a resume
    report = report_of(folder)
    assert report["splits"] == {"dev": "tiny dev", "retention": "tiny test"}
    assert list(report["models"]) == ["start", "fine-tuned"]
    config = recipe(tiny_root)
    for model, name in ((start, "start"), (folder, "fine-tuned")):
        for split, key in (("dev", "dev"), ("test", "retention")):
            config.eval.split = split
            evaluate(config, tmp_path, model)
            scored = json.loads((tmp_path / f"eval_{split}.json").read_text())
            found = report["models"][name][key]["rsum"]
            assert found == pytest.approx(scored["rsum"])
            if name == "start":
                assert before[key][0][f"eval/{key}/rsum"] == found


def test_one_line_says_how_much_worse_it_is(tuned):
    folder, said = tuned
    models = report_of(folder)["models"]
    start, after = models["start"], models["fine-tuned"]
    assert after["retention"]["rsum"] < start["retention"]["rsum"]
    lost = start["retention"]["rsum"] - after["retention"]["rsum"]
    lines = [x for x in said if x.startswith("worse than what it started from")]
    assert len(lines) == 2  # one at each end
    line = lines[-1]
    assert f"retention {start['retention']['rsum']:.1f} → " in line
    assert f"(−{lost:.1f})" in line
    assert "try --mode=interpolate" in line


def test_the_card_has_both(tuned, tmp_path):
    folder, _ = tuned
    push(load_config(folder / "config.json"), tmp_path, None, folder)
    card = (tmp_path / "share" / "README.md").read_text(encoding="utf-8")
    assert "## Fine-tuning" in card
    for name, scores in report_of(folder)["models"].items():
        (row,) = [x for x in card.splitlines() if x.startswith(f"| {name} |")]
        for split in ("dev", "retention"):
            assert f"{scores[split]['rsum']:.1f}" in row


def test_interpolation_is_scored_chosen_and_shared(start, tuned, tiny_root, tmp_path):
    folder, _ = tuned
    config = draft(load_config(folder / "config.json"))
    config.interpolate.alphas = (0.0, 0.25, 1.0)
    interpolate(config, folder)
    shared = folder / "interpolated"
    report, ends = report_of(shared), report_of(folder)["models"]
    assert list(report["models"]) == ["α = 0", "α = 0.25", "α = 1"]
    for name, end in (("α = 0", "start"), ("α = 1", "fine-tuned")):
        for split, metrics in report["models"][name].items():
            assert metrics["rsum"] == pytest.approx(ends[end][split]["rsum"])
    sums = {
        name: sum(metrics["rsum"] for metrics in scores.values())
        for name, scores in report["models"].items()
    }
    assert report["chosen"] == max(sums, key=sums.get)

    config.interpolate.alphas = (0.25,)
    interpolate(config, folder)
    arrays = [
        flatten(load_model(load_config(x / "config.json"), x).arrays)
        for x in (start, folder, shared)
    ]
    for path, x in arrays[2].items():
        expected = 0.75 * arrays[0][path] + 0.25 * arrays[1][path]
        np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-6, err_msg=path)
    config = recipe(tiny_root)
    config.eval.split = "dev"
    evaluate(config, tmp_path, shared)
    rsum = json.loads((tmp_path / "eval_dev.json").read_text())["rsum"]
    assert rsum == pytest.approx(report["models"]["α = 0.25"]["dev"]["rsum"])
    card = (shared / "README.md").read_text(encoding="utf-8")
    assert "| **α = 0.25** |" in card
    assert "between two models: α = 0.25" in card
    assert "best epoch" not in card
    push(load_config(shared / "config.json"), tmp_path, None, shared)
    again = (tmp_path / "share" / "README.md").read_text(encoding="utf-8")
    assert "| **α = 0.25** |" in again


def test_a_damaged_report_is_one_line(tmp_path):
    assert read_report(tmp_path) is None
    for text in ('{"splits": 3}', '{"splits": {"dev": ""}, "models": {"start": 1}}'):
        (tmp_path / "finetuning.json").write_text(text)
        with pytest.raises(InputError, match=r"finetuning\.json: not what was written"):
            read_report(tmp_path)


def test_what_began_from_nothing_retains_nothing(start, tiny_root, tmp_path):
    with pytest.raises(InputError, match=r"^config\.eval\.retention: the run begins"):
        train(recipe(tiny_root), tmp_path / "run")
    with pytest.raises(InputError, match=f"^{start}: its config names no whole model"):
        interpolate(load_config(start / "config.json"), start)


@pytest.mark.usefixtures("without_figures")
@pytest.mark.parametrize("pool", ["map", "gpo"])
def test_a_siglip_with_its_own_poolings_is_a_whole_model(pool, tiny_root, tmp_path):
    folder = tmp_path / "siglip"
    folder.mkdir()
    siglip.write_folder(folder, siglip.peer())
    config = recipe(tiny_root)
    config.image.update({"kind": "vit", "pool": pool, "size": siglip.SIZE})
    config.text.update({"kind": "siglip", "pool": "last" if pool == "map" else pool})
    config.image.weights = config.text.weights = str(folder)
    config.data.max_tokens = siglip.POSITIONS
    config.data.token_buckets = (siglip.POSITIONS,)
    config.embed_dim = siglip.VISION["hidden_size"]
    config.optimizer.rules = ((".*", 1.0, 0),)
    config.max_steps = 1
    config.eval.retention.name = "tiny" if pool == "map" else None
    train(config, tmp_path / "run")
    assert (tmp_path / "run" / "finetuning.json").is_file() == (pool == "map")
    if pool == "map":
        interpolate(load_config(tmp_path / "run" / "config.json"), tmp_path / "run")
