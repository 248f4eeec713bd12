"""Commands and torchrun, with its own parser, agent and restarts, as forks of a process that has imported all."""

import importlib
import multiprocessing
import os
import sys
import tempfile
import uuid
from pathlib import Path

from tests.helpers.training import processes
from tubelet.cli import main


def torchrun(words, folder):
    """`torchrun WORDS -m tubelet ...` in this process, which gets its end.

    Args:
        words: the command line.
        folder: for its temporary files, which it never removes.
    """
    from torch.distributed.launcher.api import elastic_launch
    from torch.distributed.run import config_from_args, parse_args

    importlib.import_module("tests.helpers.preloaded")  # or else each of the processes would
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        arguments = parse_args(list(map(str, words)))
        assert arguments.module and arguments.training_script == "tubelet"
        if arguments.standalone:  # as its own `run` does
            arguments.rdzv_backend, arguments.rdzv_endpoint = "c10d", "localhost:0"
            arguments.rdzv_id = str(uuid.uuid4())
        config, *_ = config_from_args(arguments)
        config.start_method = "fork"
        elastic_launch(config, _tubelet)(*arguments.training_script_args)
    finally:
        tempfile.tempdir = before


def start_torchrun(words, log):
    """`torchrun` in a process of its own, which writes to a file."""
    process = processes.Process(target=_log_and_run, args=(list(map(str, words)), str(log)))
    process.start()
    return process


def start_tubelet(words, log, prepare=None):
    """`tubelet WORDS` in a process of its own, which writes to a file; `prepare` is called in it first."""
    process = processes.Process(target=_log_and_call, args=(list(map(str, words)), str(log), prepare))
    process.start()
    return process


def _log_and_run(words, log):
    _write_to(log)
    torchrun(words, Path(log).parent)


def _log_and_call(words, log, prepare):
    multiprocessing.set_start_method(None, force=True)  # what a fork server has set, a shell has not
    _write_to(log)
    if prepare is not None:
        prepare()
    _tubelet(*words)


def _write_to(log):
    with Path(log).open("w") as file:
        for number in (1, 2):
            os.dup2(file.fileno(), number)


def _tubelet(*words):
    sys.argv = ["tubelet", *words]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
