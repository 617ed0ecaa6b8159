from benchmarks import compare, our_rows, pytorch_rows, report
from benchmarks.rows import PEAK, ROWS, Row


def test_both_sides_have_every_row():
    for row in ROWS:
        assert callable(getattr(our_rows, row.build))
        assert hasattr(pytorch_rows, row.build) != row.ours_only


def test_rows_are_chosen_by_parts_of_their_names():
    names = [row.name for row in compare.chosen(["bert", "COCO"])]
    assert names[0] == PEAK.name
    assert len(names) == 4
    assert all("BERT" in name or "COCO" in name for name in names[1:])
    assert compare.chosen([]) == list(ROWS)


def test_a_line_has_medians_ranges_and_shares_of_the_peak():
    result = {
        "ours": {"times": [0.5, 0.4, 0.6]},
        "pytorch": {"times": [1.0, 2.0, 1.5], "variant": "compiled"},
        "flops": 3e9,
    }
    assert report.line(Row("a", "a", goal=2.0), result, 10e9) == (
        "| a | 500 ms (400–600) | 1.50 s (1.00–2.00), compiled | **3.00** | ≥ 2 | 3 G |"
        " 60%, 20% |"
    )
    alone = {"ours": {"times": [30.0]}}
    assert report.line(Row("b", "b", goal=45.0, ours_only=True), alone, 10e9) == (
        "| b | 30.0 s (30.0–30.0) |  |  | ≤ 45 s |  |  |"
    )
