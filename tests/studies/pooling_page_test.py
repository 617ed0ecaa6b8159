"""The page and the figures of the study, from made-up runs."""

import re

import pytest

from studies import pooling_page, variants
from studies.ledger import Ledger, Result
from tests.helpers.pictures import assert_drawn

COEFFICIENTS = {"image": {"49": [1 / 49] * 49}, "text": {"16": [1 / 16] * 16}}
NONE = {"image": None, "text": None}


def result(variant, seed, test, dev=(300.0, 320.0, 330.0, 329.0, 331.0)):
    learned = COEFFICIENTS if variant.startswith("gpo") else NONE
    return Result(variant, seed, {}, list(dev), test, learned)


RESULTS = [
    result("gpo", 0, 320.0),
    result("max", 0, 331.0),
    result("gpo", 1, 330.0, (300.0, 320.0, 335.0, 336.0, 332.0)),
    result("max", 1, 335.0),
    result("vsepp", 1, 305.0),
]


def test_the_table_says_what_was_found():
    page = pooling_page.document(pooling_page.by_variant(RESULTS))
    # Mean ± sample deviation; what the best of dev rose in its last three epochs.
    assert (
        "| GPO | 0, 1 | 325.0 ± 7.1 | 320.0 / 330.0 |  | 333.5 ± 3.5 | +13.5 ± 3.5 |"
        in page
    )
    assert "| maximum | 0, 1 | 333.0 ± 2.8 | 331.0 / 335.0 | +8.0 ± 4.2 |" in page
    # One seed: no deviation; the difference is to GPO's run with this seed.
    assert "| average, [CLS] (VSE++) | 1 | 305.0 | 305.0 | -25.0 |" in page
    assert "self-attention |" not in page


def test_a_variant_without_a_seed_in_common_has_no_difference():
    runs = pooling_page.by_variant([result("gpo", 0, 320.0), result("max", 1, 331.0)])
    page = pooling_page.document(runs)
    assert "| maximum | 1 | 331.0 | 331.0 |  |" in page
    one_seed = [result("gpo", 0, 320.0), result("max", 0, 331.0)]
    page = pooling_page.document(pooling_page.by_variant(one_seed))
    assert "| maximum | 0 | 331.0 | 331.0 | +11.0 |" in page


@pytest.mark.parametrize("results", [RESULTS, RESULTS[1:2]])
def test_everything_is_written_from_the_ledger_alone(tmp_path, monkeypatch, results):
    monkeypatch.chdir(tmp_path)
    ledger = Ledger(pooling_page.LEDGER, variants.recipe())
    for one in results:
        ledger.add(one)
    pooling_page.main()
    assert "| maximum |" in pooling_page.DOCUMENT.read_text()
    names = ["pooling_study", "pooling_curves"]
    # Without a GPO there are no coefficients to show.
    if results is RESULTS:
        names.append("pooling_coefficients")
    for name in names:
        assert_drawn(pooling_page.FIGURES, name)
    drawn = {path.stem for path in pooling_page.FIGURES.iterdir()}
    page = pooling_page.DOCUMENT.read_text()
    assert drawn == set(names) == set(re.findall(r"images/(\w+)\.png", page))


def test_nothing_is_written_without_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pooling_page.main()
    assert not pooling_page.DOCUMENT.exists()


def test_the_committed_page_is_of_the_committed_runs():
    results = Ledger(pooling_page.LEDGER, variants.recipe()).results
    page = pooling_page.document(pooling_page.by_variant(results))
    assert pooling_page.DOCUMENT.read_text() == page
