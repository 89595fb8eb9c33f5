"""Whether MLX is there is known without loading it."""

import importlib.util
import json
import subprocess
import sys

import pytest

from localllm.backends.metal import library
from localllm.backends.metal.library import metal_device, metal_problem
from localllm.backends.select import BackendOptions, open_backend
from localllm.errors import UnsupportedModel
from tests.contract.worlds import BY_NAME, build


def test_asking_for_the_problem_does_not_load_mlx() -> None:
    code = "from localllm.backends.metal.library import metal_problem; metal_problem()"
    report = "; import sys, json; print(json.dumps('mlx.core' in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False


def test_without_mlx_the_problem_says_so_and_nothing_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_package(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", no_package)
    assert metal_problem() == "MLX is not installed"
    with pytest.raises(UnsupportedModel, match="MLX is not installed"):
        open_backend("metal", *build(BY_NAME["llama"]), BackendOptions())


def test_an_install_that_does_not_load_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlx.core")
    monkeypatch.setitem(sys.modules, "mlx.core", None)
    with pytest.raises(UnsupportedModel, match="MLX does not load") as refusal:
        metal_device()
    assert "metal" in refusal.value.hint
    monkeypatch.setattr(library, "metal_problem", lambda: "")  # the file is there
    monkeypatch.delitem(sys.modules, "localllm.backends.metal.backend", raising=False)
    with pytest.raises(UnsupportedModel, match="MLX does not load"):
        open_backend("metal", *build(BY_NAME["llama"]), BackendOptions())


def test_the_device_is_one_of_two() -> None:
    mx = pytest.importorskip("mlx.core")
    assert metal_device() == ("gpu" if mx.metal.is_available() else "cpu")
