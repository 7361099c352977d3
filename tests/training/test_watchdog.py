"""A loop that says nothing for too long is ended, with the place and the stacks."""

import threading

import pytest

from jaxalign.training.watchdog import EXIT_CODE, Watchdog


@pytest.mark.parametrize(("patient", "allowed"), [(False, "0.05 s"), (True, "0.2 s")])
def test_silence_is_named_with_all_stacks(patient, allowed, capfd):
    codes, ended = [], threading.Event()

    def leave(code):
        codes.append(code)
        ended.set()

    with Watchdog(0.05, leave=leave) as watchdog:
        watchdog.at("step 7, update phase", patient=patient)
        assert ended.wait(60)
    assert codes == [EXIT_CODE] == [70]
    said = capfd.readouterr().err
    assert f"process 0 of 1 hangs: {allowed} in step 7, update phase." in said
    assert "config.hang_timeout" in said
    assert (
        "in test_silence_is_named_with_all_stacks" in said
    )  # the thread that waits, not only the one that reports


def test_a_loop_that_ends_in_time_is_left_alone():
    codes = []
    with Watchdog(600, leave=codes.append) as watchdog:
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "watchdog"]
        watchdog.at("step 1")
        assert thread.is_alive()
    thread.join(60)
    assert not thread.is_alive() and codes == []


def test_zero_watches_nothing():
    with Watchdog(0):
        assert not [thread for thread in threading.enumerate() if thread.name == "watchdog"]
