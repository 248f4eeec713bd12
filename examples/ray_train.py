"""Pre-training on a Ray cluster: Ray Train places and restarts the processes, as torchrun would.

    pip install 'ray[train]'
    python examples/ray_train.py --workers 2 -- videos --out /shared/runs/ray --model vit-ti --steps 1000

What stands after `--` is what `tubelet train` takes; paths must be seen under the same name by every machine. Without
a running cluster, Ray starts one on this machine. If a process dies, Ray starts all of them again, and the run goes on
from its newest checkpoint.
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


class OneSetOfDevices(Backend):
    """Workers of a machine see all of its devices, and each takes that of its local rank, as under torchrun."""

    share_cuda_visible_devices = True


class TubeletConfig(BackendConfig):
    """Nothing is set up before the processes start: they meet by themselves."""

    backend_cls = OneSetOfDevices


def run_one_process(settings: dict[str, Any]) -> None:
    """What each of Ray's workers does: be the launcher of one process of the run."""
    context = get_context()
    rank = context.get_world_rank()
    address, port = broadcast_from_rank_zero(meeting_point() if rank == 0 else None)
    environment = {
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        "RANK": rank,
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_RANK": context.get_local_rank(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        # Lengths of masks differ from step to step: let the CUDA allocator's segments grow instead of fragmenting.
        "PYTORCH_ALLOC_CONF": os.environ.get("PYTORCH_ALLOC_CONF", "expandable_segments:True"),
    }
    # A process of its own: signals that ask a run to stop reach only the main thread, which here is Ray's.
    command = [sys.executable, "-m", "tubelet", "train", *settings["arguments"], "--resume"]
    environment = os.environ | {name: str(value) for name, value in environment.items()}
    code = subprocess.run(command, env=environment, cwd=settings["folder"], check=False).returncode
    if code:
        raise RuntimeError(f"process {rank} of the run ended with code {code}")


def meeting_point() -> tuple[str, int]:
    """This machine's address in the cluster, and a port that is free."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2, help="processes, one for each device")
    parser.add_argument("--gpu", action="store_true", help="give each process a GPU, not a CPU core")
    parser.add_argument("--max-failures", type=int, default=3, help="how often a run that failed begins again")
    parser.add_argument("arguments", nargs="*", help="what tubelet train takes, after --")
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
