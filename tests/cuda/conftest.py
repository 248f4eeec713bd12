from collections.abc import Iterator

import pytest

from tests.helpers import fake_cuda_process


@pytest.fixture(scope="session", autouse=True)
def end_of_child() -> Iterator[None]:
    """End the process with fake CUDA tensors after the last test."""
    yield
    fake_cuda_process.close()
