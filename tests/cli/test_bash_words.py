"""The Tab key: names of models have colons, at which bash ends a word."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localllm.cli.bash_words import joined
from tests.cli.conftest import in_new_process


@pytest.fixture
def tab(small_model_home: Path, monkeypatch: pytest.MonkeyPatch) -> "Tab":
    monkeypatch.setenv("LOCALLLM_HOME", str(small_model_home))
    return Tab(monkeypatch)


class Tab:
    """Asks as bash does; the cursor is in the last word."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._environment = monkeypatch

    def __call__(self, *words: str) -> list[str]:
        self._environment.setenv("_LOCALLLM_COMPLETE", "complete_bash")
        self._environment.setenv("COMP_WORDS", "\n".join(("localllm", *words)))
        self._environment.setenv("COMP_CWORD", str(len(words)))
        return in_new_process().out.split()


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (("show", "smol"), ["smollm2:135m"]),
        (("show", "smollm2", ":"), ["135m"]),
        (("stop", "smollm2", ":", "1"), ["135m"]),
        (("show", "smollm2", ":", "2"), []),
        (("run", "smollm2", ":", "135m", "--backend", "t"), ["torch"]),
        (("run", "smollm2", ":", "135m", "--kv-type", "f"), ["f16", "f32"]),
        (("run", "smollm2", ":", "135m", "--quantize", "q4"), ["q4_0", "q4_k"]),
        (("config", "set", "keep"), ["keep_alive"]),
        (("pull", "smollm2", ":", "1"), ["1.7b", "135m"]),
        (("fit", "smollm3"), ["smollm3:3b"]),
        (("qu",), ["quantize"]),
    ],
)
def test_what_is_completed(tab: Tab, words: Sequence[str], completed: list[str]) -> None:
    assert tab(*words) == completed


def test_the_cursor_stays_in_its_word() -> None:
    assert joined(["localllm", "run", "a", ":", "b", "c"], 4) == (["localllm", "run", "a:b", "c"], 2)
    assert joined(["localllm", "run", "a", ":", "b", ""], 5) == (["localllm", "run", "a:b", ""], 3)


@given(st.lists(st.text("ab", max_size=3), min_size=1, max_size=6), st.integers(0, 5))
def test_without_colons_nothing_is_joined(words: list[str], at: int) -> None:
    assert joined(words, at) == (words, at)
