"""Divergence of two models: against itself, against rounded weights, and by hand."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from localllm.errors import UsageError
from localllm.formats.blocks import BlockType
from localllm.lab import base_answers
from localllm.lab.base_answers import KeptAnswers
from localllm.lab.divergence import Divergence, Scores, divergence
from localllm.lab.perplexity import perplexity
from localllm.lab.sides import Opener, ReadModel
from localllm.settings import load_settings
from tests.lab.small_files import TEXT, random_model, rounded

CONTEXT = 64


class DiskUsage(NamedTuple):
    total: int
    used: int
    free: int


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    base = random_model(folder / "base.gguf")
    kinds = (BlockType.Q8_0, BlockType.Q4_0)
    return {"base": base} | {kind.name: rounded(base, folder / f"{kind.name}.gguf", kind) for kind in kinds}


def measured(model: Path, base: Path, **changes: object) -> Divergence:
    settings = load_settings({"LOCALLLM_BACKEND": "reference"})
    return divergence(str(model), str(base), TEXT, context=CONTEXT, settings=settings, **changes)  # type: ignore[arg-type]


def test_a_model_does_not_diverge_from_itself(files: dict[str, Path]) -> None:
    found = measured(files["base"], files["base"], max_chunks=2)
    assert found.kl_max < 1e-6 and found.same_top == 1 and found.ratio == pytest.approx(1)
    assert found.tokens == 2 * (CONTEXT // 2 - 1) and found.chunks == 2
    assert found.weights.all == 0 and found.weights.layers == (0, 0)


def test_fewer_bits_diverge_more(files: dict[str, Path]) -> None:
    found = [measured(files[kind], files["base"]) for kind in ("Q8_0", "Q4_0")]
    assert 0 < found[0].kl_mean < found[1].kl_mean / 10
    for each in found:
        assert 0 <= each.kl_median <= each.kl_p99 <= each.kl_max
        assert each.kl_error < each.kl_mean and each.model.size_bytes < each.base.size_bytes
        assert min(each.model.speeds.prompt, each.model.speeds.decode, each.base.speeds.decode) > 0
    assert 0.001 < found[0].weights.all < 0.01 < 0.05 < found[1].weights.all < 0.2
    assert found[1].weights.worst[0].type == "Q4_0" and found[1].weights.worst[0].name.startswith("blk.")


def test_perplexities_are_those_of_eval_ppl(files: dict[str, Path]) -> None:
    settings = load_settings({"LOCALLLM_BACKEND": "reference"})
    found = measured(files["Q4_0"], files["base"])
    for side, file in ((found.model, files["Q4_0"]), (found.base, files["base"])):
        alone = perplexity(str(file), TEXT, context=CONTEXT, settings=settings)
        assert side.perplexity == pytest.approx(alone.perplexity, rel=1e-5)
        assert side.error == pytest.approx(alone.error, rel=1e-2)
    assert found.ratio == pytest.approx(found.model.perplexity / found.base.perplexity, rel=1e-5)


def test_one_after_the_other_gives_the_same_numbers(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    beside = measured(files["Q4_0"], files["base"])
    monkeypatch.setattr(base_answers, "MEMORY_SHARE", 0.0)
    after = measured(files["Q4_0"], files["base"])
    assert after.kl_mean == pytest.approx(beside.kl_mean, rel=1e-2)
    assert after.base.perplexity == pytest.approx(beside.base.perplexity, rel=1e-3)
    assert after.same_top == pytest.approx(beside.same_top, abs=0.01)


def test_a_base_whose_answers_are_kept_is_opened_once(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = [measured(files[kind], files["base"]) for kind in ("Q8_0", "Q4_0")]
    opened: list[str] = []
    as_before = Opener.open

    def counted(opener: Opener) -> ReadModel:
        opened.append(opener.path.name)
        return as_before(opener)

    monkeypatch.setattr(Opener, "open", counted)
    with open(tmp_path / "answers", "w+b") as file:
        kept = KeptAnswers(tmp_path, file)
        again = [measured(files[kind], files["base"], kept=kept) for kind in ("Q8_0", "Q4_0")]
    assert opened == ["base.gguf", "Q8_0.gguf", "Q4_0.gguf"]
    for one, other in zip(again, alone, strict=True):
        assert one.kl_mean == pytest.approx(other.kl_mean, rel=0.1)
        assert one.model.perplexity == other.model.perplexity and one.tokens == other.tokens
        assert one.base.perplexity == pytest.approx(other.base.perplexity, rel=1e-3)


def test_where_there_is_no_room_to_keep_them_they_are_computed_again(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: DiskUsage(100, 99, 1))
    with open(tmp_path / "answers", "w+b") as file:
        kept = KeptAnswers(tmp_path, file)
        found = measured(files["Q4_0"], files["base"], kept=kept)
        assert found.kl_mean == measured(files["Q4_0"], files["base"]).kl_mean
        assert kept.side is None and not file.tell()


def test_the_numbers_are_those_of_the_definition() -> None:
    rng = np.random.default_rng(1)
    base, own = (np.log(rng.dirichlet(np.ones(50), 30)).astype(np.float32) for _ in range(2))
    targets = rng.integers(0, 50, 30)
    scores = Scores()
    scores.add(base[:10], own[:10], targets[:10])
    scores.add(base[10:], own[10:], targets[10:])
    expected = (np.exp(base.astype(np.float64)) * (base.astype(np.float64) - own)).sum(axis=1)
    assert scores.mean == pytest.approx(expected.mean(), rel=1e-5)
    assert scores.own_losses == pytest.approx(-own[np.arange(30), targets])


def test_models_of_different_tokens_are_not_compared(files: dict[str, Path], tmp_path: Path) -> None:
    other = random_model(tmp_path / "other.gguf", vocab=310)
    with pytest.raises(UsageError, match="different tokenizers"):
        measured(other, files["base"])


def test_a_short_text_is_refused(files: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="are needed for a context of 64"):
        divergence(str(files["base"]), str(files["base"]), "Hello.", context=CONTEXT, settings=load_settings({}))
