"""How a worker process begins: deaf to Ctrl-C, and bound to the life of its parent."""

import os
import signal
import threading
from multiprocessing import parent_process


def start_worker(*_: object) -> None:
    """Call first in a worker.

    A terminal sends Ctrl-C to every process, but the parent decides when its workers end. If it is killed it cannot:
    then they end themselves, under every start method.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)
