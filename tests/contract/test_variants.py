"""Random variants of every family, from both file formats, held to transformers' logits on every backend.

LOCALLLM_TEST_VARIANTS sets how many (CI: 40); LOCALLLM_TEST_SEED where they begin.
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localllm.errors import UnsupportedModel
from localllm.formats.blocks import BlockType
from localllm.formats.gguf_read import GGUFFile
from localllm.models.mapping import gguf_model, hf_model
from localllm.quantize.convert import convert
from tests.contract.conftest import HOSTS
from tests.contract.test_families import TOLERANCES, difference, logits_of
from tests.contract.walk import Walk
from tests.oracles.hf import as_folder, expected_logits, make_model
from tests.oracles.variants import variant

FIRST = int(os.environ.get("LOCALLLM_TEST_SEED", "0"))
COUNT = int(os.environ.get("LOCALLLM_TEST_VARIANTS", "40"))
SIZES = (5, 1, 15)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_a_variant_gives_the_logits_of_transformers_on_every_backend(seed: int, tmp_path: Path) -> None:
    family = variant(seed)
    model = make_model(family)
    prompt = np.random.default_rng(seed).integers(3, 80, sum(SIZES)).tolist()
    expected = expected_logits(model, prompt)
    checkpoint = as_folder(model, tmp_path)
    opened = [hf_model(checkpoint)]
    try:
        convert(checkpoint, tmp_path / "model.gguf", BlockType.F32, {})
    except UnsupportedModel as error:
        assert "cannot say that the activation" in error.message
    else:
        opened.append(gguf_model(GGUFFile.open(tmp_path / "model.gguf")))
    for host in HOSTS:
        for config, source in () if host.problem() else opened:
            backend = host.open(replace(config, context_length=64), source, "f32")
            found = difference(logits_of(Walk(backend), prompt, SIZES), expected)
            assert found <= TOLERANCES["f32"], (host.name, family.settings)
            backend.close()
