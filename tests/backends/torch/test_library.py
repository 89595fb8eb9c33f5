"""Which devices there are, which one is meant, and what is said where torch is missing or broken."""

import subprocess
import sys

import pytest

from localllm.backends.torch import library
from localllm.errors import NotEnoughMemory, UnsupportedModel, UsageError


def test_asking_whether_torch_is_there_does_not_load_it() -> None:
    program = (
        "import sys\n"
        "import localllm.backends.torch.backend\n"
        "from localllm.backends.torch.library import torch_problem\n"
        "print(repr(torch_problem()), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "'' False"


def test_where_torch_is_not_installed_the_problem_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert library.torch_problem() == "torch is not installed"


@pytest.mark.parametrize("failure", [ImportError("no module"), OSError("libcudart.so.13: cannot open shared object")])
def test_a_broken_torch_is_reported_when_it_is_opened(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def fail(name: str) -> None:
        raise failure

    monkeypatch.setattr("importlib.import_module", fail)
    with pytest.raises(UnsupportedModel, match=str(failure)) as caught:
        library.require_torch()
    assert caught.value.hint


def test_the_processor_is_the_last_of_the_devices() -> None:
    assert library.device_names()[-1] == "cpu"


def test_no_name_is_the_first_of_the_devices() -> None:
    assert str(library.open_device("")) == library.device_names()[0]


@pytest.mark.parametrize("name", ["cuda:99", "tpu", "CPU", "meta"])
def test_a_device_that_torch_does_not_see_is_refused_with_those_it_sees(name: str) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        library.open_device(name)
    assert "cpu" in caught.value.hint


@pytest.mark.parametrize(
    ("cores", "wanted", "expected"), [(1, 0, 1), (2, 0, 1), (2, 2, 1), (8, 0, 8), (8, 3, 3), (8, 64, 8)]
)
def test_threads_suit_the_machine(monkeypatch: pytest.MonkeyPatch, cores: int, wanted: int, expected: int) -> None:
    monkeypatch.setattr(library, "default_threads", lambda: cores)
    assert library.suitable_threads(wanted) == expected


@pytest.mark.parametrize(
    "failure",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:132] DefaultCPUAllocator: can't allocate memory: you tried"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18.0 GB)"),
    ],
)
def test_an_allocation_that_fails_is_named(failure: Exception) -> None:
    with pytest.raises(NotEnoughMemory, match="no memory for 7 pages") as caught, library.memory_named("7 pages", "x"):
        raise failure
    assert caught.value.hint == "x"


def test_an_error_of_torchs_own_class_for_memory_is_named() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(NotEnoughMemory), library.memory_named("the weights", ""):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


def test_another_error_is_left_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="shape"), library.memory_named("the weights", ""):
        raise RuntimeError("the shape is wrong")
