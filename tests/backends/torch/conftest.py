"""Every test here runs on each device that torch sees: with a GPU the same tests run there, too."""

import pytest

from localllm.backends.torch.library import device_names, torch_problem


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", ["none"] if torch_problem() else device_names())


@pytest.fixture(autouse=True)
def _needs_torch() -> None:
    if problem := torch_problem():
        pytest.skip(problem)
