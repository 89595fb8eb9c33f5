"""Bytes from anybody: no crash, no second without an answer, no error that is not ours. `scripts/fuzz` runs longer."""

import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.security.fuzz_targets import Survivors, seeds

RUNS = {"gguf": 400, "safetensors": 400, "template": 300, "body": 600}
MAX_S = 1.0  # of this process's own time
JSON = (b"{", b"}", b"[", b"]", b'"', b":", b",", b"null", b"true", b"-1", b"1e308", b'"model":', b'"prompt":', b'"n":')
JINJA = (
    b"{{",
    b"}}",
    b"{%",
    b"%}",
    b" for ",
    b" in ",
    b" messages ",
    b"endfor",
    b"|",
    b" if ",
    b"endif",
    b"''",
    b"~",
    b"*",
)


@pytest.fixture(scope="module")
def survivors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Survivors]:
    yield Survivors(tmp_path_factory.mktemp("fuzz"))


@st.composite
def mutated(draw: st.DrawFn, target: str, sound: list[bytes]) -> bytes:
    """A sound input with some places overwritten, doubled or cut out."""
    data = bytearray(draw(st.sampled_from(sound)))
    words = st.binary(max_size=8) | st.sampled_from(JINJA if target == "template" else JSON)
    numbers = st.sampled_from((2**64 - 1, 2**63, 2**31, 2**32 - 1, 0, 1)).map(
        lambda number: number.to_bytes(8, "little")
    )
    for _ in range(draw(st.integers(1, 6))):
        at, length = draw(st.integers(0, len(data))), draw(st.integers(0, 12))
        data[at : at + length] = draw(words | numbers)
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.integers(0, 5)) == 0 else bytes(data)


@pytest.mark.parametrize("target", sorted(RUNS))
def test_whatever_the_bytes_there_is_an_answer_or_an_error_of_ours(survivors: Survivors, target: str) -> None:
    run, sound = survivors.targets()[target], seeds(target)
    for seed in sound:
        run(seed)

    @settings(max_examples=RUNS[target], database=None)
    @given(mutated(target, sound))
    def survives(data: bytes) -> None:
        started = time.process_time()
        run(data)
        assert time.process_time() - started < MAX_S

    survives()
