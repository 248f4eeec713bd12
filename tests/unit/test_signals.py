"""Signals that ask a run to stop."""

import signal

import pytest

from tubelet.train.signals import STOP_SIGNALS, StopSignals

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP")


@pytest.fixture(params=[signal.SIG_DFL, signal.SIG_IGN])
def hangup(request):
    before = signal.signal(signal.SIGHUP, request.param)
    yield request.param
    signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_closed_stops_a_run_unless_it_was_to_outlive_it(hangup):
    with StopSignals() as signals:
        signal.raise_signal(signal.SIGHUP)
        assert signals.received == (signal.SIGHUP if hangup == signal.SIG_DFL else None)
    assert signal.getsignal(signal.SIGHUP) == hangup
    assert signal.SIGHUP in STOP_SIGNALS


def test_a_signal_is_acknowledged_at_once(caplog):
    before = signal.getsignal(signal.SIGTERM)
    with caplog.at_level("WARNING", "tubelet"), StopSignals() as signals:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # the same one, as launchers repeat it
    assert signals.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
    assert [record.message for record in caplog.records] == [
        "SIGTERM: stopping after this step; send it again to stop at once"
    ]
