"""How many workers start by default."""

import os

import pytest

from tubelet.config import DataConfig
from tubelet.data import prefetch, worker_count
from tubelet.data.prefetch import prefetch_auto
from tubelet.data.worker_count import available_cores, cgroup_cores, resolve_workers
from tubelet.errors import ConfigError


@pytest.mark.parametrize(
    ("cores", "processes", "workers"), [(1, 1, 1), (2, 1, 1), (4, 1, 3), (64, 1, 16), (96, 8, 11), (8, 8, 1), (4, 8, 1)]
)
def test_auto_is_a_worker_for_each_core_of_a_process_but_one(monkeypatch, cores, processes, workers):
    monkeypatch.setattr(worker_count, "available_cores", lambda: cores)
    monkeypatch.setattr(worker_count, "local_processes", lambda: processes)
    assert resolve_workers("auto") == workers
    assert resolve_workers(0) == 0 and resolve_workers(40) == 40


def test_processes_of_a_launcher_on_this_machine_are_counted(monkeypatch):
    monkeypatch.setattr(worker_count, "available_cores", lambda: 24)
    launch = {"RANK": 9, "LOCAL_RANK": 1, "WORLD_SIZE": 16, "LOCAL_WORLD_SIZE": 8, "MASTER_ADDR": "a", "MASTER_PORT": 1}
    for name, value in launch.items():
        monkeypatch.setenv(name, str(value))
    assert resolve_workers("auto") == 2
    monkeypatch.delenv("MASTER_ADDR")  # left over in a shell
    assert resolve_workers("auto") == 16


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(worker_count, "cgroup_cores", lambda: None)
    monkeypatch.setattr(os, "process_cpu_count", lambda: 5, raising=False)
    assert available_cores() == 5
    for limit, cores in ((2.5, 2), (0.3, 1), (64.0, 5)):
        monkeypatch.setattr(worker_count, "cgroup_cores", lambda limit=limit: limit)
        assert available_cores() == cores


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_limits_of_control_groups_are_the_least_of_all_levels(tmp_path):
    membership, root = tmp_path / "cgroup", tmp_path / "fs"
    assert cgroup_cores(membership, root) is None
    membership.write_text("0::/pod/job\n")
    write(root / "pod" / "job" / "cpu.max", "max 100000\n")
    assert cgroup_cores(membership, root) is None
    write(root / "pod" / "cpu.max", "350000 100000\n")
    assert cgroup_cores(membership, root) == 3.5
    membership.write_text("12:memory:/a\n4:cpu,cpuacct:/docker/1\n")
    assert cgroup_cores(membership, root) is None
    write(root / "cpu" / "cpu.cfs_quota_us", "200000\n")
    write(root / "cpu" / "cpu.cfs_period_us", "100000\n")
    assert cgroup_cores(membership, root) == 2


@pytest.mark.parametrize(
    ("free_mb", "expected"),
    [(10_000, (8, 2)), (1300, (8, 1)), (500, (4, 1)), (64, (1, 1)), (None, (8, 2))],
)
def test_auto_starts_as_many_workers_as_shared_memory_has_room_for(monkeypatch, free_mb, expected):
    monkeypatch.setattr(prefetch, "resolve_workers", lambda workers: 8 if workers == "auto" else workers)
    monkeypatch.setattr(prefetch, "free_shared_memory", lambda: free_mb and free_mb * 10**6)
    ahead = prefetch_auto(2048, "a step's samples", 100 * 10**6, "auto")
    assert (ahead.workers, ahead.factor) == expected
    if expected[0] == 8:
        assert ahead.note is None
    else:
        assert ahead.note.startswith(f"/dev/shm has {free_mb} MB free, and a step's samples are 100.0 MB: ")
        assert f"{expected[0]} of 8 workers start; docker run --shm-size 2g has room for all" in ahead.note
    assert prefetch_auto(2048, "", 100 * 10**6, 3) == (3, 2, None)  # refused when it starts, if there is too little


def test_workers_are_a_number_or_auto():
    assert DataConfig().workers == "auto" and DataConfig(workers=3).workers == 3
    for wrong in ("all", -1, 1.5):
        with pytest.raises(ConfigError, match=r"workers is .*, expected (a whole number or 'auto'|0 to 1024)"):
            DataConfig(workers=wrong)
