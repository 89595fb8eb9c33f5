"""The real small model under many schemas: what it finishes validates. All of them: scripts/check_schemas."""

from pathlib import Path

import pytest

pytest.importorskip("localllm.backends.cpu._native", reason="the native kernels have not been built")
pytest.importorskip("jsonschema")

from localllm import wire
from localllm.runtime.load import load_engine, load_text
from tests.scripts.loading import script


def test_every_finished_answer_of_the_small_model_validates(small_model_file: Path) -> None:
    tool = script("check_schemas")
    load = wire.Load(path=str(small_model_file), backend="cpu", context_length=1024, kv_pages=1024, max_sequences=8)
    engine, _ = load_engine(load)
    wanted = list(tool.schemas(20, seed=7))
    answers = tool.answers(engine, load_text(small_model_file).tokenizer, wanted, max_tokens=96)
    engine.close()
    verdicts = [answer.verdict() for answer in answers]
    assert set(verdicts) <= {"finished", "unfinished"}, [v for v in verdicts if ":" in v or v == "refused"]
    assert verdicts.count("finished") >= 10


def test_the_generated_schemas_are_the_same_for_a_seed_and_of_many_kinds() -> None:
    tool = script("check_schemas")
    wanted = list(tool.schemas(200, seed=1))
    assert len(wanted) == 200 and wanted == list(tool.schemas(200, seed=1)) != list(tool.schemas(200, seed=2))
    text = str(wanted)
    for word in ("anyOf", "oneOf", "allOf", "$ref", "enum", "const", "pattern", "format", "minItems", "maxItems",
                 "minLength", "exclusiveMaximum", "prefixItems", "patternProperties", "größe"):  # fmt: skip
        assert f"'{word}'" in text, word
