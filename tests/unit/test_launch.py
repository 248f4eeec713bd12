"""The variables of a launcher: when they count, and what is reported where they are left over."""

import sys

import pytest

from tubelet import cli
from tubelet.errors import TubeletError
from tubelet.launch import Launch, read_launch
from tubelet.train.distributed import init_distributed

WHOLE = {"RANK": "3", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


@pytest.fixture
def environment(monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)

    def change(values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return change


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, None),
        ({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"MASTER_ADDR": "node1", "MASTER_PORT": "29500", "SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, None),
        ({"RANK": "", "LOCAL_RANK": ""}, None),
        (WHOLE | {"RANK": "0", "WORLD_SIZE": "1"}, None),
        (WHOLE, Launch(3, 4, 0, 4)),
        (WHOLE | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Launch(3, 4, 1, 2)),
    ],
)
def test_a_process_is_one_of_several_only_where_a_launcher_sets_all_of_it(values, expected, environment):
    environment(values)
    assert read_launch() == expected


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"RANK": "3"},
            "RANK is 3 in the environment, but WORLD_SIZE and MASTER_ADDR and MASTER_PORT not set.*`unset RANK`",
        ),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK is 1 .*`unset LOCAL_RANK`"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is 2 .*MASTER_ADDR.*`unset RANK WORLD_SIZE`"),
        ({"LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE is 8"),
        ({"RANK": "two"}, "RANK is 'two' .* expected a whole number"),
        ({"WORLD_SIZE": "-1"}, "WORLD_SIZE is '-1'"),
        (WHOLE | {"RANK": "4"}, "RANK is 4 and WORLD_SIZE 4"),
    ],
)
def test_variables_that_are_left_over_are_named_with_what_unsets_them(values, words, environment):
    environment(values)
    with pytest.raises(TubeletError, match=words), init_distributed(1):
        pass


@pytest.mark.slow
def test_a_launcher_whose_other_processes_are_gone_is_one_sentence(environment):
    environment(WHOLE)
    words = r"process 3 of 4 cannot reach the others at 127.0.0.1:1 .*`unset RANK"
    with pytest.raises(TubeletError, match=words), init_distributed(1):
        pass


@pytest.mark.parametrize(
    ("values", "command", "reported"),
    [
        ({"LOCAL_RANK": "1"}, "search", True),
        (WHOLE | {"LOCAL_RANK": "1"}, "search", True),
        ({"LOCAL_RANK": "1"}, "train", True),
        (WHOLE | {"LOCAL_RANK": "1"}, "train", False),  # the first process of the machine reports it
        (WHOLE | {"LOCAL_RANK": "0"}, "train", True),
    ],
)
def test_only_the_other_processes_of_a_distributed_run_leave_an_error_to_the_first(
    values, command, reported, environment, monkeypatch, capsys, tmp_path
):
    environment(values)
    words = {"search": [str(tmp_path), "a.png"], "train": [str(tmp_path / "none"), "--resume"]}
    monkeypatch.setattr(sys, "argv", ["tubelet", command, *words[command]])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: ") == reported
