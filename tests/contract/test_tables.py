"""Wide tables that are only looked up stay where they are: no backend makes a copy of them."""

from pathlib import Path

import numpy as np

from localllm.engine.step import Want
from localllm.formats.blocks import BlockType
from localllm.models.mapping import hf_model
from tests.contract.conftest import Host
from tests.contract.walk import Walk
from tests.contract.worlds import World, build, plain
from tests.models.test_checkpoints import MemoryFolder, checkpoint

WIDE = World("a wide table", config={"token_inputs": 128}, type=BlockType.Q8_0)
TABLE = "per_layer_token_embd.weight"
CHECKPOINT_TABLE = "model.embed_tokens_per_layer.weight"
TOKENS = np.random.default_rng(3).integers(0, 80, 9).tolist()


def test_a_table_that_is_only_looked_up_is_not_among_the_weights_in_memory(host: Host) -> None:
    config, source = build(WIDE)
    others = sum(source.raw(name).nbytes for name in source.names() if name != TABLE)
    released: list[str] = []
    source.release = released.append  # type: ignore[method-assign]  # what a backend has its own copy of
    backend = host.open(config, source)
    if host.name in ("cpu", "torch"):  # the others keep, and count, views of the file
        decoded = 4 if host.name == "torch" else 1.2
        assert backend.info.weight_bytes < decoded * others
    assert TABLE not in released
    (result,) = Walk(backend).step((1, TOKENS, Want(logits="all")))
    host.check(result.logits, plain(config, source).logits(TOKENS), WIDE)
    backend.close()


def test_a_table_outlives_the_file_that_it_came_from(host: Host) -> None:
    config, source = build(WIDE)
    backend, expected = host.open(config, source), plain(config, source).logits(TOKENS)
    del source
    (result,) = Walk(backend).step((1, TOKENS, Want(logits="all")))
    host.check(result.logits, expected, WIDE)
    backend.close()


def test_tokens_beyond_the_table_have_its_first_row(host: Host, tmp_path: Path) -> None:
    folder = checkpoint("gemma 3n", tmp_path)
    shorter = MemoryFolder({**folder.config, "vocab_size_per_layer_input": 70}, folder.arrays)
    shorter.arrays[CHECKPOINT_TABLE] = shorter.arrays[CHECKPOINT_TABLE][:70]
    folder.arrays[CHECKPOINT_TABLE][70:] = folder.arrays[CHECKPOINT_TABLE][0]
    found = []
    for each in (folder, shorter):
        backend = host.open(*hf_model(each))
        (result,) = Walk(backend).step((1, [5, 70, 79, 3], Want(logits="all")))
        assert result.logits is not None
        found.append(result.logits)
        backend.close()
    np.testing.assert_array_equal(found[0], found[1])
