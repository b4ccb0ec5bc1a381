"""What the comparison concludes from requests, without servers."""

from __future__ import annotations

from bench.load.result import Outcome, Result
from bench.load.summary import Objective
from bench.split_against_colocated import Cell, falls_through, ratio_line, table

TIGHT = Objective(1.0, 0.01)


def cell(system: str, rate: float, met: int, missed: int) -> Cell:
    def result(tpot_s: float, outcome: Outcome = Outcome.OK) -> Result:
        return Result(0, 0.0, 0.0, 0.0, outcome, 9, 9, 1.0, 0.5, 9, tpot_s)

    lost = [result(0.001, Outcome.REJECTED)] if missed else []
    return Cell(system, rate, (*[result(0.005)] * met, *[result(0.02)] * (missed - len(lost)), *lost))


def test_goodput_is_where_the_curve_falls_through() -> None:
    """By a straight line between two rates; none below the first; not known where it never falls."""
    assert falls_through([1.0, 2.0], [1.0, 0.8], 0.9) == 1.5
    assert falls_through([1.0, 2.0], [0.5, 1.0], 0.9) == 0.0
    assert falls_through([1.0, 2.0], [0.95, 0.9], 0.9) is None


def test_the_table_counts_lost_requests_as_misses_and_gives_the_ratio() -> None:
    """100 % then 60 % falls through 90 % at 1.25; against 1.0 to 0.8 at 1.5. Nothing is claimed outside the rates."""
    cells = [cell("a", 1.0, 10, 0), cell("a", 2.0, 6, 4), cell("b", 1.0, 10, 0), cell("b", 2.0, 8, 2)]
    lines, goodput = table(cells, TIGHT, 0.9)
    assert goodput == {"a": 1.25, "b": 1.5}
    assert "60 (31..83)" in lines[2] and lines[2].endswith("1.25")
    assert ratio_line(goodput, "b", "a").endswith("goodput of b is 1.20 x that of a")
    assert "no ratio" in ratio_line({"a": None, "b": 1.0}, "a", "b")
    assert "no ratio" in ratio_line({"a": 0.0, "b": 1.0}, "a", "b")
