"""What the report says of given measurements."""

from benchmarks import cases, report
from benchmarks.rounds import Contest, Entry

FAST, SLOW, BROKEN, OURS, STOCK = (
    cases.Side("PyTorch", "compile", "float32"),
    cases.Side("PyTorch", "eager", "bfloat16"),
    cases.Side("PyTorch", "compile", "bfloat16"),
    cases.Side("diffjax", "auto", "float32"),
    cases.Side("stock", "flax", "float32"),
)


def lines():
    entries = (
        Entry(FAST, (2.0, 4.0, 2.0)),
        Entry(SLOW, (9.0,), left_out=4.5),
        Entry(BROKEN, failed="no compiler | at all"),
        # Twice as noisy together: each round's ratio is what counts, not the medians'.
        Entry(OURS, (1.0, 2.0, 1.5), parameters=1_000_000, forward_flops=1e9, device="cpu"),
        Entry(STOCK, (4.0, 8.0, 6.0)),
    )
    case = cases.load("smoke", "cpu")
    text = report.document([Contest(case, "train", entries)], [("a", "b")], device="cpu", rounds=3)
    return text.splitlines()


def test_ratios_are_taken_round_by_round():
    (row,) = [line for line in lines() if line.startswith("| diffjax auto, float32")]
    # 16 images in 1.5 s, 3 GFLOP each.
    assert row == (
        "| diffjax auto, float32 | 1.50 (1.00 to 2.00) | 10.7 | 0.500 (0.500 to 0.750) "
        "| 0.250 (0.250 to 0.250) | 32.0 |"
    )
    assert any("2.00 (1.33 to 2.00) times as fast as PyTorch's" in line for line in lines())
    assert any("4.00 (4.00 to 4.00) times as fast as stock's" in line for line in lines())


def test_no_side_is_dropped():
    text = "\n".join(lines())
    assert "| PyTorch compile, bfloat16 | failed: no compiler / at all |" in text
    assert "9.00; left out of the rounds: 4.5 x slower" in text


def test_tables_are_whole():
    widths = {line.count("|") for line in lines() if line.startswith("|")}
    assert widths == {7, 3}
