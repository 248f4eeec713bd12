"""Ctrl-C while a compiled module is imported is neither lost nor another error."""

import importlib.machinery
import signal
import time

import pytest

from tubelet.cli.interrupts import interrupts_after_imports


class Loader(importlib.machinery.ExtensionFileLoader):
    """Stands for the import of a compiled module that swallows an interrupt."""

    def __init__(self, presses=1):
        self.presses, self.done, self.swallowed = presses, False, False

    def load(self):
        try:
            for _ in range(self.presses):
                signal.raise_signal(signal.SIGINT)
            self.done = True
        except KeyboardInterrupt:
            self.swallowed = True


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there are no timers here")
def test_ctrl_c_in_the_import_of_a_compiled_module_is_raised_after_it():
    before, loader = signal.getsignal(signal.SIGINT), Loader()
    with pytest.raises(KeyboardInterrupt), interrupts_after_imports():
        loader.load()
        time.sleep(10)
    assert loader.done and not loader.swallowed
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_elsewhere_and_a_second_one_are_raised_at_once():
    with pytest.raises(KeyboardInterrupt), interrupts_after_imports():
        signal.raise_signal(signal.SIGINT)
    second = Loader(presses=2)
    with interrupts_after_imports():
        second.load()
    assert second.swallowed
