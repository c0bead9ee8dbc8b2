import shutil

import pytest
import torch


@pytest.fixture(autouse=True)
def compiler():
    if shutil.which("c++") is None:
        pytest.skip("the training kernels need a system C++ compiler")


@pytest.fixture(autouse=True)
def threads():
    """Training chooses its number of threads; the other tests get theirs back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
