"""How many GPUs are tried for a rate where nobody says how many there are."""

from __future__ import annotations

from collections.abc import Callable

from deploy.planning.plan import _growing
from deploy.planning.question import MOST_GPUS
from placement.hardware.catalogue import gpu_type
from placement.search.bounds import Bounds, Slo
from placement.search.candidate import Candidate, Pool
from placement.search.goodput import Attainment, Goodput, Verdict
from placement.search.search import Answer, Outcome, Price, Question
from placement.search.space import Space

H100, A100 = gpu_type("h100"), gpu_type("a100")
SPACE = Space(8, (H100, A100), (H100, A100))
SLO = Slo(0.5, 0.05)


def carried_by(gpus: int, *, surely: bool) -> Answer:
    found = Attainment(50.0, 0.91, 0.001 if surely else 0.02, 600, Verdict.GOOD)
    goodput = Goodput(50.0, 0.0, 60.0, (found,))
    return Answer(Candidate(None, Pool(H100, gpus), 512), Bounds({"link": 60.0}), goodput, "")


def tried(*answers: Answer, interrupted_at: int = 0, price: Price = Price.GPUS) -> tuple[list[int], Outcome]:
    """The numbers that were tried where these placements carry the rate, and what came of it."""
    seen = []

    def searched(gpus: int) -> Outcome:
        seen.append(gpus)
        if gpus == interrupted_at:
            return Outcome(None, None, (), (), complete=False)
        within = [one for one in answers if one.candidate.gpus <= gpus]
        sure = next((one for one in within if one.surely_good(SLO.attainment)), None)
        return Outcome(within[0] if within else None, sure, tuple(within), (), complete=True)

    run: Callable[[int], Outcome] = searched
    return seen, _growing(run, Question(SLO, 50.0, price), SPACE)


def test_twice_as_many_until_it_is_surely_carried() -> None:
    assert tried(carried_by(6, surely=True))[0] == [8]
    seen, outcome = tried(carried_by(30, surely=True))
    assert seen == [8, 16, 32] and outcome.best is outcome.sure is not None
    assert tried()[0][-1] == MOST_GPUS


def test_what_is_never_sure_is_not_looked_for_for_ever() -> None:
    seen, outcome = tried(carried_by(6, surely=False))
    assert seen == [8, 16] and outcome.complete
    assert outcome.best is not None and outcome.sure is None
    seen, outcome = tried(carried_by(6, surely=False), carried_by(9, surely=True))
    assert seen == [8, 16] and outcome.sure is not None


def test_an_interrupted_larger_search_keeps_the_answer_of_the_smaller() -> None:
    for sure, price, numbers in ((False, Price.GPUS, [8, 16]), (True, Price.COST, [8, 12])):  # for 6 H100s 12 A100s
        seen, outcome = tried(carried_by(6, surely=sure), interrupted_at=numbers[-1], price=price)
        assert seen == numbers and not outcome.complete
        assert outcome.best is not None and outcome.best.candidate.gpus == 6
