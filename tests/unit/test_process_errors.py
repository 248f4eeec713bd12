"""What a run of several processes reports of an error: its cause where one knows it, a lost process otherwise."""

import importlib
import os
from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from tubelet import cli
from tubelet.errors import TubeletError
from tubelet.train import distributed
from tubelet.train.distributed import DistContext, init_distributed

NCCL = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3690, "
CAUSES = {
    "shared memory": dist.DistBackendError(
        f"{NCCL}unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.28.9\n"
        "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. \n"
        "Last error:\nError while creating shared memory segment /dev/shm/nccl-WU88OE (size 9637888), "
        "error: No space left on device (28)"
    ),
    "duplicate device": dist.DistBackendError(
        f"{NCCL}invalid usage (run with NCCL_DEBUG=WARN for details), NCCL version 2.28.9\n"
        "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.\n"
        "Last error:\nDuplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000\n"
        "Exception raised from getNCCLComm at ProcessGroupNCCL.cpp:1287 (most recent call first):\nframe #0: ..."
    ),
    "illegal access": torch.AcceleratorError(
        "CUDA error: an illegal memory access was encountered\nNCCL kernel\n"
        "CUDA kernel errors might be asynchronously reported at some other API call"
    ),
    "out of memory": torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB"
    ),
    "interface": dist.DistBackendError(
        f"{NCCL}internal error, NCCL version 2.28.9\nLast error:\nBootstrap : no socket interface found"
    ),
}
LOST = {
    "gloo, closed": RuntimeError(
        "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:544] Connection closed by peer [10.2.96.68]:21932"
    ),
    "gloo, reset": RuntimeError(
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:589] Read error [192.168.70.92]:25266: "
        "Connection reset by peer"
    ),
    "gloo of torch 2.13": RuntimeError(
        "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer "
        "[127.0.0.1]:27838. This is typically caused by a remote worker crashing. Check the logs of the remote worker "
        "before reporting an error."
    ),
    "NCCL, remote error": dist.DistBackendError(
        f"{NCCL}remote process exited or there was a network error, NCCL version 2.28.9\n"
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.\n"
        "Last error:\nsocketProgressOpt: Call to recv from 172.16.0.9<33759> failed : Connection reset by peer"
    ),
    "NCCL, internal error": dist.DistBackendError(
        f"{NCCL}internal error, NCCL version 2.14.3\nncclInternalError: Internal check failed.\n"
        "Last error:\nNet : Connection closed by remote peer node2<50260>"
    ),
    "store": dist.DistNetworkError(
        "Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server shutdown or crash?"
    ),
}


def report(error, store, rank=1):
    """What `_report_once` makes of an error that was raised."""
    try:
        raise error
    except BaseException as raised:
        return distributed._report_once(raised, store, DistContext(torch.device("cpu"), rank, 3), timedelta(seconds=1))


@pytest.mark.parametrize("name", CAUSES)
def test_an_error_of_this_process_keeps_its_text_and_traceback(name, capsys):
    known = report(CAUSES[name], dist.HashStore())
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    last = printed.splitlines()[-1]
    assert last == f"error: {known}"
    for line in str(CAUSES[name]).split("Exception raised")[0].splitlines():
        assert line.strip() in last
    assert type(CAUSES[name]).__name__ in last
    assert "another process" not in last and "frame #0" not in last


@pytest.mark.parametrize("name", LOST)
def test_a_lost_process_is_reported_in_one_line_that_ends_with_the_original_text(name, capsys):
    report(LOST[name], dist.HashStore())
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: rank 1 lost the connection to another process of the run; aborting (")
    for part in str(LOST[name]).splitlines():
        assert part in line


def test_the_cause_is_reported_though_a_process_that_was_lost_to_it_came_first(capsys):
    store = dist.HashStore()
    report(LOST["gloo, closed"], store, rank=1)
    report(CAUSES["illegal access"], store, rank=2)
    report(CAUSES["illegal access"], store, rank=3)
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert ["lost the connection" in line for line in errors] == [True, False]
    assert "illegal memory access" in errors[1]


def test_a_process_that_was_lost_to_a_reported_error_adds_nothing(capsys):
    store = dist.HashStore()
    report(TubeletError("the disk is full"), store, rank=2)
    report(LOST["NCCL, remote error"], store, rank=1)
    assert capsys.readouterr().err == "error: the disk is full\n"


def test_a_time_out_names_the_missing_ranks_and_keeps_the_original_text(capsys, monkeypatch):
    monkeypatch.setattr(distributed, "SHUTDOWN_GRACE", timedelta(seconds=0.05))
    store = dist.HashStore()
    store.set("ends/0", "")
    report(RuntimeError("[pair.cc:1] Timed out waiting 1000ms for recv operation to complete"), store)
    (line,) = capsys.readouterr().err.splitlines()
    assert "missing ranks: 2 (RuntimeError: [pair.cc:1] Timed out waiting 1000ms" in line


def launched(monkeypatch, device):
    """Start as one process of two under a launcher, with what PyTorch is called with recorded, not done."""
    calls, store = [], dist.HashStore()
    monkeypatch.setattr(distributed, "read_launch", lambda: SimpleNamespace(rank=1, size=2, local_rank=1, local_size=2))
    monkeypatch.setattr(distributed, "_local_device", lambda rank: device)
    monkeypatch.setattr(distributed, "_rendezvous", lambda size, timeout: (store, 1))
    for name in ("init_process_group", "barrier", "destroy_process_group"):
        monkeypatch.setattr(dist, name, lambda *args, name=name, **options: calls.append((name, options)))
    monkeypatch.setattr(dist.distributed_c10d, "_abort_process_group", lambda: calls.append(("abort", {})))
    return calls


def test_nccl_connects_at_once_by_the_device_and_is_aborted_after_an_error(monkeypatch, capsys):
    device = torch.device("cuda", 1)
    calls = launched(monkeypatch, device)
    with pytest.raises(TubeletError), init_distributed(1):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    assert [name for name, _ in calls] == ["init_process_group", "abort"]
    assert calls[0][1]["device_id"] == device
    calls.clear()
    with init_distributed(1):
        pass
    assert [name for name, _ in calls] == ["init_process_group", "barrier", "destroy_process_group"]


def test_gloo_needs_no_device_and_is_not_aborted(monkeypatch, capsys):
    calls = launched(monkeypatch, torch.device("cpu"))
    with pytest.raises(TubeletError), init_distributed(1):
        raise RuntimeError("an error")
    assert [name for name, _ in calls] == ["init_process_group"]
    assert calls[0][1]["device_id"] is None


def test_an_error_of_the_first_connection_is_reported_as_any_other(monkeypatch, capsys):
    launched(monkeypatch, torch.device("cuda", 1))

    def fail(*_, **__):
        raise CAUSES["duplicate device"]

    monkeypatch.setattr(dist, "init_process_group", fail)
    with pytest.raises(TubeletError, match="Duplicate GPU detected"), init_distributed(1):
        raise AssertionError("not reached")
    assert "error: DistBackendError: NCCL error" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        ({}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        ({"PYTORCH_ALLOC_CONF": "backend:native"}, {"PYTORCH_ALLOC_CONF": "backend:native"}),
        ({"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}),
    ],
)
def test_the_command_line_lets_cuda_segments_grow_unless_the_user_sets_the_allocator(before, expected, monkeypatch):
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    importlib.reload(cli)
    assert {name: os.environ[name] for name in names if name in os.environ} == expected
