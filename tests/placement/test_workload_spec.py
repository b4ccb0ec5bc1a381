"""`--workload`: what it means, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pdserve.settings import ConfigError
from placement.workload import (
    Fixed,
    Lognormal,
    Uniform,
    Workload,
    WorkloadError,
    WorkloadSource,
    load_workload,
    parse_workload_spec,
    write_workload,
)


def built(text: str, **asked: float) -> Workload:
    workload = load_workload(parse_workload_spec(text), **asked)  # type: ignore[arg-type]
    workload.check()
    return workload


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Ten requests, one every half second, named so that the comma has to be understood."""
    path = tmp_path / "a,b=c.jsonl"
    times = 7.0 + np.arange(10) / 2
    write_workload(Workload.of(np.arange(10, 110, 10), np.arange(1, 11), times), path)
    return path


def test_lengths_in_words() -> None:
    """Fixed, a range, lognormal; correlation, rate and number."""
    spec = parse_workload_spec("input=2000,output=50..200,correlation=0.5,rate=2,n=30")
    assert (spec.input, spec.output, spec.correlation, spec.path) == (Fixed(2000), Uniform(50, 200), 0.5, None)
    assert parse_workload_spec("input=lognormal:900:0.8,output=1").input == Lognormal(900.0, 0.8)
    workload = built("input=2000,output=50..200,rate=2,n=300,arrivals=constant")
    assert (len(workload), workload.rate, set(workload.prompt_tokens.tolist())) == (300, 2.0, {2000})


def test_what_the_caller_says_goes_before_the_spec() -> None:
    """Rate, number, duration and seed may come with the call: a sweep builds one spec at many rates."""
    source = WorkloadSource(parse_workload_spec("azure-conv,rate=3,n=20,seed=5"))
    assert len(source.build()) == 20
    slow, fast = source.build(rate=1.0), source.build(rate=10.0)
    assert slow.prompt_tokens.tolist() == fast.prompt_tokens.tolist()
    assert slow.arrival_s == pytest.approx(10 * fast.arrival_s)
    assert source.build(seed=6).prompt_tokens.tolist() != slow.prompt_tokens.tolist()
    assert len(source.build(num_requests=7)) == 7
    timed = source.build(duration_s=4.0, num_requests=10_000)
    assert timed.arrival_s[-1] < 4.0 and 2 <= len(timed) <= 40


def test_a_duration_alone_decides_the_number() -> None:
    """All arrivals of that time, also where gaps are so uneven that the first guess is short."""
    for text in ("input=10,output=10,arrivals=poisson", "azure-code", "input=9,output=9,arrivals=gamma,cv=10"):
        workload = built(text, rate=20.0, duration_s=50.0, seed=1)
        longer = built(text, rate=20.0, duration_s=100.0, seed=1)
        assert (longer.arrival_s < 50.0).sum() == len(workload)


def test_a_file_with_its_own_times(trace: Path) -> None:
    """As recorded, from 0 on; at another rate; repeated where more is asked for; made Poisson on demand."""
    assert built(str(trace)).arrival_s.tolist() == (np.arange(10) / 2).tolist()
    assert built(f"{trace},rate=4").arrival_s.tolist() == (np.arange(10) / 4).tolist()
    assert len(built(f"{trace},head=4")) == 4
    assert built(f"{trace},start=8,end=9").prompt_tokens.tolist() == [30, 40]
    assert built(f"{trace},max-input=40,max-output=3").prompt_tokens.tolist() == [10, 20, 30]
    assert built(f"{trace},clip=yes,max-input=40,max-output=3").prompt_tokens.tolist() == [10, 20, 30] + [40] * 7
    repeated = built(f"{trace},n=25")
    assert (len(repeated), repeated.rate) == (25, 2.0)
    poisson = built(f"{trace},arrivals=poisson,rate=4")
    assert poisson.prompt_tokens.tolist() == list(range(10, 110, 10)) and len(set(np.diff(poisson.arrival_s))) == 9
    drawn = built(f"{trace},resample=yes,n=40,seed=3,arrivals=poisson")
    assert set(drawn.prompt_tokens.tolist()) <= set(range(10, 110, 10)) and len(drawn) == 40


def test_rates_that_change() -> None:
    """The mean of the pieces is the rate; a caller's rate scales them all."""
    source = WorkloadSource(parse_workload_spec("input=5,output=5,rates=1@30+5@10,cv=0"))
    assert source.own_rate == 2.0
    assert source.build(duration_s=40.0).arrival_s.size == pytest.approx(80, abs=1)
    assert source.build(duration_s=40.0, rate=4.0).arrival_s.size == pytest.approx(160, abs=1)


def test_a_shared_prefix() -> None:
    """prefix=: every prompt begins with the same blocks."""
    workload = built("input=100,output=5,rate=1,n=3,prefix=32")
    assert {row.prefix for row in workload} == {(0, 1)}


REFUSED = [
    ("", "must begin with a trace file, one of azure-code, azure-conv, mooncake, or input="),
    ("azure-cnv", "is 'azure-cnv', no file; it must begin with a trace file"),
    ("tests", "is 'tests', a directory; it must begin"),
    ("x" * 5000, r"is 'x{97}\.\.\.', no file; it must begin"),
    ("input=2000", "lacks output="),
    ("input=2000,output=0", "output is '0'; it must be TOKENS, LOW..HIGH or lognormal:MEAN:CV, tokens from 1 to"),
    ("input=9..3,output=1", "input is '9..3'"),
    ("input=lognormal:5,output=1", "input is 'lognormal:5'"),
    ("input=1,output=1,rate=0", "rate is '0'; it must be a number of requests per second above 0"),
    ("input=1,output=1,rate=nan", "rate is 'nan'"),
    ("input=1,output=1,rats=3", r"has 'rats=3', .*did you mean rate"),
    ("input=1,output=1,n", "has 'n', which is not KEY=VALUE"),
    ("input=1,output=1,n=2,n=3", "gives n twice"),
    ("input=1,output=1,arrivals=weekly", "arrivals is 'weekly'; it must be one of trace, poisson, gamma, constant"),
    ("input=1,output=1,arrivals=gamma", "no cv="),
    ("input=1,output=1,cv=2", "cv=, which goes with arrivals=gamma"),
    ("input=1,output=1,arrivals=trace", "but no trace"),
    ("input=1,output=1,rates=0@5", "rates is '0@5'; it must be RATE@SECONDS"),
    ("input=1,output=1,rates=1@5,rate=2", "only one of them"),
    ("input=1,output=1,correlation=2", "correlation is '2'; it must be a number from -1 to 1"),
    ("azure-conv,input=5", "lengths come from one of them"),
    ("azure-conv,head=5", "head=, which is for trace files alone"),
    ("azure-conv,prefix=5", "prefix=, which goes with input="),
    ("input=40,output=5,prefix=41", "prefix is 41 and no prompt has more than 40 tokens; input includes it"),
    ("input=9..40,output=5,prefix=41", "prefix is 41 and no prompt has more than 40 tokens"),
    ("input=90,output=5,prefix=41,max-input=40", "prefix is 41 and no prompt has more than 40 tokens"),
    ("x.csv,start=5,end=5", "start must be less"),
    ("x.csv,clip=yes", "needs max-input= and max-output="),
]


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_wrong_words_are_named(text: str, said: str) -> None:
    """A configuration error: the flag, the key, its value, what is allowed."""
    with pytest.raises(ConfigError, match=said) as caught:
        parse_workload_spec(text)
    assert caught.value.problems[0].startswith("--workload ")


def test_what_cannot_be_built_says_why(tmp_path: Path, trace: Path) -> None:
    """No file, no rate, no number, limits that leave nothing."""
    talk = tmp_path / "talk.json"
    talk.write_text('[{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]')
    for text, said in (
        (f"{tmp_path}/no.csv", "cannot be read: No such file"),
        (str(talk), "has no times of its own, so it needs a rate"),
        ("input=1,output=1,rate=1", "needs a number of requests or a duration: n=, duration="),
        (f"{trace},max-input=5", r"none of its [\d,]+ requests keeps max-input=5"),
        (f"{trace},start=1e6", r"no request comes between start=1e\+06 and end=inf s; the last one comes at "),
        (f"{talk},end=5", "its requests have no times, which start= and end= need"),
        ("input=100,output=1,rate=1,n=5,max-input=50", "fewer than one request in 100 keeps max-input=50"),
        ("input=100,output=1,rate=0.001,duration=1,arrivals=constant", "no request comes within 1 s"),
        ("input=1,output=1,rate=1,n=60000000", "has 6e\\+07 requests; at most 50,000,000 are made"),
        ("input=1,output=1,rate=1000,duration=1000000", "requests; at most 50,000,000 are made"),
    ):
        with pytest.raises(WorkloadError, match=said):
            built(text)
    assert built(str(talk), rate=2.0)[0].text == "a"
