"""Entries of the catalog that are only tokenizers: pulled and found by name, and never mistaken for models."""

from pathlib import Path

import pytest

from localllm.errors import ModelNotFound, NetworkError
from localllm.store.catalog import Catalog, Source, TokenizerEntry
from localllm.store.library import Library
from localllm.store.names import parse_ref
from localllm.store.tokenizers import CAPABILITY
from tests.store.worlds import FakeHub, Listener, library_of, tiny_folder

REPO = "org/Cutter"
HUB = Source(kind="hub", repo=REPO)


def catalog_with(*sources: Source, name: str = "cutter") -> Catalog:
    return Catalog((), (TokenizerEntry(name=name, title="Cutter", kind="BPE", sources=sources),))


def library_at(tmp_path: Path, hub: FakeHub, *sources: Source) -> Library:
    return library_of(tmp_path / "home", catalog_with(*sources or (HUB,)), hub_endpoint=hub.endpoint)


def test_the_shipped_catalog_has_tokenizers_of_every_kind_under_names_of_their_own() -> None:
    catalog = Catalog.load()
    assert {entry.kind for entry in catalog.tokenizers} == {"BPE", "Unigram", "WordPiece"}
    assert {"gpt-4o", "llama-3", "bert", "t5"} <= {entry.name for entry in catalog.tokenizers}
    for entry in catalog.tokenizers:
        assert catalog.find(parse_ref(entry.name)) is None, entry.name
        assert entry.title and entry.license and entry.sources, entry.name


def test_only_the_tokenizer_is_fetched(tmp_path: Path, hub: FakeHub, listener: Listener) -> None:
    hub.repos[REPO] = tiny_folder(tokenizer_config__json=b"{ }")
    library = library_at(tmp_path, hub)
    entry = library.pull("cutter", listener)
    assert entry.capabilities == (CAPABILITY,) and Path(entry.path, "tokenizer.json").read_bytes() == b"{}"
    asked = {path.rpartition("/")[2] for method, path, *_ in hub.requests if method == "GET" and "/resolve/" in path}
    assert asked == {"tokenizer.json", "tokenizer_config.json"}
    assert library.tokenizers.find("cutter") == Path(entry.path)
    assert "ready" in listener.said("done")


def test_it_is_no_model(tmp_path: Path, hub: FakeHub, listener: Listener) -> None:
    hub.repos[REPO] = tiny_folder()
    library = library_at(tmp_path, hub)
    for _ in ("before it is pulled", "after"):
        assert library.entries() == []
        with pytest.raises(ModelNotFound, match="only a tokenizer"):
            library.find("cutter")
        library.pull("cutter", listener)


def test_what_is_here_is_not_fetched_again_and_what_is_gone_is(
    tmp_path: Path, hub: FakeHub, listener: Listener
) -> None:
    hub.repos[REPO] = tiny_folder()
    library = library_at(tmp_path, hub)
    path = Path(library.pull("cutter", listener).path, "tokenizer.json")
    before = len(hub.requests)
    library.pull("cutter", listener)
    assert len(hub.requests) == before and "here already" in listener.said("done")
    path.unlink()
    assert library.tokenizers.path_of("cutter") is None
    with pytest.raises(ModelNotFound, match="not here") as caught:
        library.tokenizers.find("cutter")
    assert caught.value.hint == "get it with: localllm pull cutter"
    assert Path(library.pull("cutter", listener).path, "tokenizer.json").is_file()


def test_a_folder_is_used_where_it_lies_and_sources_are_tried_in_order(
    tmp_path: Path, hub: FakeHub, listener: Listener
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "tokenizer.json").write_text("{}")
    nowhere, here = (Source(kind="path", path=str(tmp_path / name)) for name in ("nowhere", "here"))
    library = library_at(tmp_path, hub, nowhere, here)
    assert library.pull("cutter", listener).path == str(tmp_path / "here")
    alone = library_of(tmp_path / "other", catalog_with(nowhere))
    with pytest.raises(NetworkError, match=r"no tokenizer\.json"):
        alone.pull("cutter", listener)


def test_a_damaged_record_is_made_anew(tmp_path: Path, hub: FakeHub, listener: Listener) -> None:
    hub.repos[REPO] = tiny_folder()
    library = library_at(tmp_path, hub)
    library.pull("cutter", listener)
    (library.settings.store_dir / "tokenizers" / "cutter.json").write_text("{")
    assert library.tokenizers.path_of("cutter") is None
    assert Path(library.pull("cutter", listener).path).is_dir()


def test_a_name_that_nobody_knows_gets_a_suggestion(tmp_path: Path, hub: FakeHub) -> None:
    with pytest.raises(ModelNotFound, match="no tokenizer cuter") as caught:
        library_at(tmp_path, hub).tokenizers.find("cuter")
    assert "cutter" in caught.value.hint


def test_it_is_removed_with_the_files_that_we_brought(tmp_path: Path, hub: FakeHub, listener: Listener) -> None:
    hub.repos[REPO] = tiny_folder()
    library = library_at(tmp_path, hub)
    with pytest.raises(ModelNotFound, match="not here"):
        library.removable("cutter")
    folder = Path(library.pull("cutter", listener).path)
    assert library.removable("cutter") == "cutter"
    library.remove("cutter")
    assert library.tokenizers.path_of("cutter") is None and not (folder / "tokenizer.json").exists()
    with pytest.raises(ModelNotFound, match="not here"):
        library.remove("cutter")


def test_removing_it_leaves_a_folder_that_was_there_before(tmp_path: Path, hub: FakeHub, listener: Listener) -> None:
    (tmp_path / "tokenizer.json").write_bytes(b"{}")
    library = library_at(tmp_path, hub, Source(kind="path", path=str(tmp_path)))
    library.pull("cutter", listener)
    library.remove("cutter")
    assert (tmp_path / "tokenizer.json").exists() and library.tokenizers.here() == []


def test_a_pull_in_order_to_run_is_refused_before_it_begins(tmp_path: Path, hub: FakeHub) -> None:
    library = library_at(tmp_path, hub)
    with pytest.raises(ModelNotFound, match="only a tokenizer"):
        library.refuse_tokenizer("cutter")
    library.refuse_tokenizer("another")
    assert hub.requests == []
