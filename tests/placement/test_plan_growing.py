"""How many GPUs are tried for a rate where nobody says how many there are."""

from __future__ import annotations

from dataclasses import replace

from deploy.planning.sizes import SEARCHED_GPUS, Sizes
from placement.hardware.catalogue import gpu_type
from placement.search.answer import Answer, Outcome
from placement.search.bounds import Bounds, Slo
from placement.search.bracket import Attainment, Verdict
from placement.search.candidate import Candidate, Pool
from placement.search.goodput import Goodput
from placement.search.question import Price, Question
from placement.search.scale import PART_GPUS
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

    def searched(question: Question, space: Space) -> Outcome:
        seen.append(space.gpus)
        if space.gpus == interrupted_at:
            return Outcome(None, None, (), (), complete=False)
        within = [one for one in answers if one.candidate.gpus <= space.gpus and question.rate == 50.0]
        sure = next((one for one in within if one.surely_good(SLO.attainment)), None)
        return Outcome(within[0] if within else None, sure, tuple(within), (), complete=True)

    def enlarged(part: Outcome, copies: int) -> Outcome:
        raise AssertionError("not that large")

    return seen, Sizes(Question(SLO, 50.0, price), SPACE, searched, enlarged, given=False).find()


def test_twice_as_many_until_it_is_surely_carried() -> None:
    assert tried(carried_by(6, surely=True))[0] == [8]
    seen, outcome = tried(carried_by(30, surely=True))
    assert seen == [8, 16, 32] and outcome.best is outcome.sure is not None


def test_beyond_what_is_searched_whole_a_part_carries_its_share_of_the_rate() -> None:
    """Of half, a quarter, ... of the load, until it is carried; the budgets are shared out too."""
    seen: list[tuple[int, float, float]] = []

    def searched(question: Question, space: Space) -> Outcome:
        assert question.rate is not None
        seen.append((space.gpus, question.rate, space.max_power_w))
        able = (carried_by(60, surely=True),) if question.rate <= 50.0 else ()
        return Outcome(next(iter(able), None), next(iter(able), None), able, (), complete=True)

    whole = Outcome(None, None, (), (), complete=True)
    told: list[tuple[Outcome, int]] = []

    def enlarged(part: Outcome, copies: int) -> Outcome:
        told.append((part, copies))
        return whole

    space = replace(SPACE, gpus=1 << 17, max_power_w=3.2e6)
    found = Sizes(Question(SLO, 800.0, Price.GPUS), space, searched, enlarged, given=False).find()
    assert found is whole and told[0][1] == 16 and told[0][0].best is not None
    assert [one[0] for one in seen] == [8, 16, 32, 64, 128, SEARCHED_GPUS, PART_GPUS, PART_GPUS]
    assert seen[-1] == (PART_GPUS, 50.0, 2e5)


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
