"""Overlapping calls: all of them done, in order, with their errors raised."""

import threading
import time

import pytest

from igneous_airflow.storage.overlap import Overlap

WIDTHS = pytest.mark.parametrize("width", [1, 4])


@WIDTHS
def test_results_come_in_the_order_of_their_items(width):
    def slow_at_first(item):
        time.sleep(0.02 if item == 0 else 0)
        return item * item

    with Overlap(width) as overlap:
        assert list(overlap.map(slow_at_first, range(20))) == [(n, n * n) for n in range(20)]


@WIDTHS
def test_everything_submitted_is_done_at_the_end(width):
    done = []
    with Overlap(width) as overlap:
        for item in range(50):
            overlap.submit(lambda item=item: done.append(item))
    assert sorted(done) == list(range(50))


def fail():
    raise ZeroDivisionError


@WIDTHS
def test_an_error_of_a_submitted_call_is_raised(width):
    with pytest.raises(ZeroDivisionError), Overlap(width) as overlap:  # noqa: PT012
        overlap.submit(fail)
        time.sleep(0.01)


@WIDTHS
def test_an_error_of_a_mapped_call_is_raised(width):
    with pytest.raises(ZeroDivisionError), Overlap(width) as overlap:
        list(overlap.map(lambda n: 1 // n, [2, 1, 0, 1]))


@WIDTHS
def test_the_callers_own_error_comes_first(width):
    with pytest.raises(KeyError), Overlap(width) as overlap:  # noqa: PT012
        for _ in overlap.map(lambda n: n, range(10)):
            raise KeyError


def test_no_more_calls_are_under_way_than_the_width():
    all_three, threads = threading.Barrier(3), set()

    def call():
        all_three.wait(timeout=30)
        threads.add(threading.current_thread())

    with Overlap(3) as overlap:
        for _ in range(21):
            overlap.submit(call)
    assert len(threads) == 3
