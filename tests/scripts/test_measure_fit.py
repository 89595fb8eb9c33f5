"""What `localllm fit` predicts is what a worker of the real small model takes."""

import sys
from pathlib import Path

import pytest

from tests.scripts.loading import script


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_prediction_is_within_a_tenth_of_resident_memory(
    small_model_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("localllm.backends.cpu._native", reason="the native library is not built")
    assert script("measure_fit").main([f"{small_model_file}:160:2"]) == 0
    assert capsys.readouterr().out.count("\n") == 3


def test_a_model_is_named_with_its_context_and_how_many(tmp_path: Path) -> None:
    loaded = script("measure_fit")
    file = tmp_path / "model.gguf"
    file.touch()
    assert loaded.wish_of(f"{file}:2048:3") == loaded.Wish(str(file), 2048, 3)
    assert loaded.wish_of("smollm2:135m") == loaded.Wish("smollm2:135m", 1024, 1)
    assert loaded.main([]) == 2
