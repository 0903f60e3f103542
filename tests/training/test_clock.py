"""Every moment is of one kind; compilations are found wherever they happen."""

import time

import jax
import pytest

from dalle_jax.training.telemetry.clock import COMPILE_EVENTS, Clock, Kind, process_began


@pytest.fixture
def passes(monkeypatch):
    """A function by whose calls alone time passes."""
    now = {"perf_counter": time.perf_counter(), "time": time.time()}
    for name in now:
        monkeypatch.setattr(time, name, lambda name=name: now[name])

    def pass_by(seconds):
        for name in now:
            now[name] += seconds

    return pass_by


def test_kinds_sum_to_the_time_that_passed(passes):
    began = time.time() - 5.0
    with Clock(began) as clock:
        with clock.measure(Kind.EVALUATE):
            passes(2.0)
            with clock.measure(Kind.OTHER):
                passes(3.0)
            assert clock.kind is Kind.EVALUATE
        clock.enter(Kind.STEP)
        passes(1.0)
        totals = clock.totals()
    assert sum(totals.values()) == pytest.approx(11.0)
    assert [totals[kind] for kind in (Kind.START, Kind.EVALUATE, Kind.OTHER, Kind.STEP)] == pytest.approx([5, 2, 3, 1])


def test_laps_are_of_what_came_between(passes):
    clock = Clock()
    clock.enter(Kind.STEP)
    passes(2.0)
    assert clock.lap()[Kind.STEP] == pytest.approx(2.0)
    passes(0.5)
    clock.enter(Kind.INPUT)
    passes(0.25)
    lap = clock.lap()
    assert (lap[Kind.STEP], lap[Kind.INPUT], lap[Kind.START]) == pytest.approx((0.5, 0.25, 0.0))


def test_compilations_are_taken_out_of_other_kinds():
    # A function that no cache on disk knows, since it holds the time.
    salt = time.time()
    with Clock() as clock:
        clock.enter(Kind.EVALUATE)
        before = clock.totals()
        start = time.perf_counter()
        jax.block_until_ready(jax.jit(lambda x: jax.numpy.sin(x * salt) @ x)(jax.numpy.ones((3, 3))))
        passed = time.perf_counter() - start
        after = clock.totals()
    assert 0 < after[Kind.COMPILE] <= passed + 1e-3
    spent = after[Kind.COMPILE] + after[Kind.EVALUATE] - before[Kind.EVALUATE]
    assert spent >= passed  # and by what passed outside the two looks at the time; how much that is the machine decides


def test_a_compilation_inside_another_counts_once(monkeypatch):
    clock = Clock()
    clock.enter(Kind.EVALUATE)
    clock._since -= 10.0  # ten seconds of evaluation
    now = time.perf_counter()
    for ends, seconds in [(2.0, 1.0), (4.0, 1.5), (5.0, 4.5), (9.0, 2.0)]:  # the third holds the first two
        monkeypatch.setattr(time, "perf_counter", lambda ends=ends: now + ends)
        clock._on_event(COMPILE_EVENTS[0], seconds)
    assert clock.totals()[Kind.COMPILE] == pytest.approx(4.5 + 2.0)
    assert clock.totals()[Kind.EVALUATE] == pytest.approx(10.0 + 9.0 - 6.5, abs=0.1)


def test_process_began_before_now_and_not_long_ago():
    assert 0 <= time.time() - process_began() < 24 * 3600
