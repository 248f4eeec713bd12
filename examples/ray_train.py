"""Pre-training on a Ray cluster: Ray Train places and restarts the processes, like torchrun.

    pip install 'ray[train]'
    python examples/ray_train.py --workers 2 -- videos --out /shared/runs/ray --model vit-ti --steps 1000

Arguments after `--` are passed to `tubelet train`. Paths must be the same on every machine. Without a running cluster,
Ray starts one on this machine. If a process dies, Ray restarts all of them, and the run resumes from its newest
checkpoint.
"""

import argparse
import os
import socket
import subprocess
import sys
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, get_context
from ray.train.backend import Backend, BackendConfig
from ray.train.collective import broadcast_from_rank_zero
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer


class SharedDevicesBackend(Backend):
    """Let workers see all devices of their machine; each uses the device of its local rank, as with torchrun."""

    share_cuda_visible_devices = True


class TubeletConfig(BackendConfig):
    """Backend without setup: the processes connect by themselves."""

    backend_cls = SharedDevicesBackend


def run_one_process(settings: dict[str, Any]) -> None:
    """Launch one process of the run; called in each of Ray's workers."""
    context = get_context()
    rank = context.get_world_rank()
    address, port = broadcast_from_rank_zero(rendezvous_address() if rank == 0 else None)
    environment = {
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "RANK": rank,
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_RANK": context.get_local_rank(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        # Mask lengths change from step to step: let the CUDA allocator's segments grow instead of fragmenting.
        "PYTORCH_ALLOC_CONF": os.environ.get("PYTORCH_ALLOC_CONF", "expandable_segments:True"),
    }
    # Use a separate process: stop signals reach only the main thread, which is Ray's here.
    command = [sys.executable, "-m", "tubelet", "train", *settings["arguments"], "--resume"]
    environment = os.environ | {name: str(value) for name, value in environment.items()}
    code = subprocess.run(command, env=environment, cwd=settings["folder"], check=False).returncode
    if code:
        raise RuntimeError(f"process {rank} of the run ended with code {code}")


def rendezvous_address() -> tuple[str, int]:
    """This machine's address in the cluster, and a free port."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]


def main() -> None:
    """Parse the command line and start the run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="number of processes, one per device")
    parser.add_argument("--gpu", action="store_true", help="give each process a GPU, not a CPU core")
    parser.add_argument("--max-failures", type=int, default=3, help="number of restarts after failures")
    parser.add_argument("arguments", nargs="*", help="arguments of tubelet train, after --")
    options = parser.parse_args()
    trainer = DataParallelTrainer(
        run_one_process,
        train_loop_config={"arguments": options.arguments, "folder": os.getcwd()},  # noqa: PTH109
        backend_config=TubeletConfig(),
        scaling_config=ScalingConfig(num_workers=options.workers, use_gpu=options.gpu),
        run_config=RunConfig(failure_config=FailureConfig(max_failures=options.max_failures)),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
