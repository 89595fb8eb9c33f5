"""No name, digest or path leads out of the store, tells what files there are, or writes anything anywhere else.

CVE-2024-37032 ("Probllama": an unchecked digest wrote files), CVE-2024-39719 and -39722 (which files exist),
CVE-2024-45436 (zip slip).
"""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import msgspec
import pytest

from localllm.daemon.keys import KeyFile
from localllm.server.app import library_of
from localllm.server.operations import Operation
from localllm.settings import load_settings
from localllm.store.modelfile import parse_modelfile
from tests.server.ollama_world import stocked
from tests.server.world import World, daemon
from tests.store.worlds import tiny_gguf

SECRET = "the canary's own words"
UPS = (
    "..",
    "../..",
    "../../..",
    "../../../../../../../..",
    "..\\..",
    "%2e%2e/%2e%2e",
    "..%2f..",
    "....//....//",
    "a/../..",
)
ENDS = ("canary", "canary.gguf", "canary:latest", "etc/passwd", "keys.json", "config.toml", ".ssh/id_rsa")
HEADS = ("", "hf.co/", "hf.co/a/", "a:", "localhost/", "https://x/", "file://")
TRAVERSALS = [f"{head}{up}/{end}" for head, up, end in itertools.product(HEADS[:3], UPS, ENDS)]
ODD = [
    f"{head}{text}"
    for head in HEADS
    for text in (
        "..", ".", "a/..", "\x00", "a\x00b", "a\nb", "\x1b[2J", "\u202egnp", "/dev/zero", "/dev/random",
        "//etc/passwd", "~root/x", "~/.ssh/id_rsa", "C:\\x", "\\\\host\\x", "CON", "a" * 5000, "a:b:c",
        "/proc/1/mem", "a@sha256:../../x", "sha256:../../canary", "sha256-" + "../" * 5, "$HOME", "`id`", "|id",
        "-rf", "*", "?",
    )
]  # fmt: skip
NAMES = TRAVERSALS + ODD
DIGESTS = [
    "sha256:" + "a" * 63, "sha256:" + "a" * 65, "sha256:" + "A" * 64, "sha256:" + "g" * 64, "sha512:" + "a" * 64,
    "sha256-" + "a" * 63, "sha256:../../canary", "../../canary", "sha256:" + "a" * 64 + "/../x",
    "sha256:", "", "latest",
    "sha256:" + "a" * 62 + "\n", "sha256:" + "\uff11" * 64, "sha256:" + "a" * 64 + "\x00",
]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("disk")
    for name in ("canary", "canary.gguf", "home/canary"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(SECRET)
    return root


@pytest.fixture(scope="module")
def world(root: Path) -> Iterator[World]:
    settings = load_settings({"LOCALLLM_HOME": str(root / "home")}, offline=True)
    with daemon(root / "home", sources=library_of(settings), offline=True) as world:
        yield world


def outside(root: Path) -> dict[str, tuple[int, int]]:
    """Every file that is not of the store, with what would change if somebody wrote to it."""
    files = (Path(folder) / name for folder, _, names in os.walk(root) for name in names)
    kept = (path for path in files if root / "home" not in path.parents or path.name == "canary")
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in kept}


def bodied(world: World) -> list[Operation]:
    skipped = ("/localllm/v1/shutdown",)
    return [
        operation
        for operation in world.daemon.directory.operations
        if operation.method in ("POST", "DELETE") and operation.path not in skipped and "{" not in operation.path
    ]


def body_of(operation: Operation, name: str) -> dict[str, Any]:
    """Every field that this route has and that could hold a name, and enough besides to get as far as the store."""
    fields = {
        "model": name, "name": name, "source": name, "destination": name, "from": name, "stream": False, "input": "x",
        "prompt": "x", "messages": [{"role": "user", "content": "x"}], "max_tokens": 1,
        "query": "x", "documents": ["x"],
        "text_1": "x", "text_2": "x", "tokens": [1],
    }  # fmt: skip
    known = {field.encode_name for field in msgspec.structs.fields(operation.body)} if operation.body else fields
    wanted = {field: value for field, value in fields.items() if field in known}
    if operation.path.endswith("tokenize"):
        wanted.pop("messages", None)
    return wanted


def test_there_are_two_hundred_names_and_more() -> None:
    assert len(set(NAMES)) >= 200


def test_no_name_in_any_body_leads_out_of_the_store(world: World, root: Path) -> None:
    before = outside(root)
    operations = bodied(world)
    assert len(operations) > 20
    for number, name in enumerate(NAMES):
        for operation in operations[number % 6 :: 6]:
            body = body_of(operation, name)
            answer = world.client.request(operation.method, operation.path, json=body)
            is_found = operation.path.endswith("/catalog/search")  # what is looked for is a text, and no name
            is_fine = is_found or 400 <= answer.status_code < 500 or is_told(answer.text)
            assert is_fine, (operation.path, name, answer.text[:300])
            assert SECRET not in answer.text and "root:" not in answer.text
    assert outside(root) == before


def is_told(text: str) -> bool:
    """Long work begins with 200 and tells in its last line what was wrong; so does deleting what is not there."""
    return '"error"' in text or '"was_loaded":false' in text


def test_no_name_in_any_path_leads_out_of_the_store(world: World, root: Path) -> None:
    before = outside(root)
    for name in NAMES:
        for prefix in ("/v1/models/", "/v1/responses/", "/api/blobs/", "/v1/requests/"):
            answer = world.client.get(prefix + quote(name[:2000], safe="").replace(".", "%2E"))
            assert 400 <= answer.status_code < 500, (prefix, name, answer.text[:300])
            assert SECRET not in answer.text
    assert outside(root) == before


@pytest.mark.parametrize("digest", DIGESTS)
def test_a_digest_is_sixty_four_digits_or_it_is_refused(world: World, root: Path, digest: str) -> None:
    before = outside(root)
    for method in ("HEAD", "POST"):
        answer = world.client.request(method, "/api/blobs/" + quote(digest, safe=""), content=b"x")
        assert 400 <= answer.status_code < 500, answer.text
    assert outside(root) == before


def test_what_is_sent_under_another_digest_is_not_kept(world: World, root: Path) -> None:
    digest = "sha256:" + "a" * 64
    assert world.client.post(f"/api/blobs/{digest}", content=b"something else").status_code == 400
    assert world.client.head(f"/api/blobs/{digest}").status_code == 404


def test_a_link_in_the_store_is_not_followed(world: World, root: Path) -> None:
    digest = "c" * 64
    for folder, _, _ in list(os.walk(root / "home" / "store")):
        for name in (f"sha256-{digest}", f"sha256:{digest}", digest):
            (Path(folder) / name).symlink_to(root / "canary.gguf")
    try:
        assert world.client.head(f"/api/blobs/sha256:{digest}").status_code == 404
    finally:
        for folder, _, names in os.walk(root / "home" / "store"):
            for name in names:
                if digest in name:
                    (Path(folder) / name).unlink()


def test_one_who_only_asks_models_learns_nothing_of_files(root: Path, tmp_path: Path) -> None:
    key = KeyFile(tmp_path / "keys.json").create("asker", ["inference"])
    with daemon(tmp_path) as world:
        world.client.headers["authorization"] = f"Bearer {key}"
        for path in (str(root / "canary.gguf"), "/no/such/file.gguf", "/etc/passwd", "./x", "~/x", "../x"):
            answer = world.client.post("/v1/completions", json={"model": path, "prompt": "x"})
            assert answer.status_code == 403 and "no files" in answer.json()["error"]["message"]
            assert path not in answer.text
        assert world.client.get("/v1/models/" + quote("/etc/passwd")).status_code == 403
        assert world.client.get("/v1/models/toy:1b").status_code == 200


def test_where_a_models_files_lie_is_told_to_those_who_manage_models_only(tmp_path: Path) -> None:
    file = tiny_gguf(tmp_path / "own.gguf")
    with stocked(tmp_path / "home") as place:
        place.library.create("mine", parse_modelfile(f"FROM {file}"))
        client = place.world.client

        def told() -> str:
            shown = client.post("/api/show", json={"model": "mine"})
            paths = ("/api/tags", "/props?model=mine", "/v1/models", "/localllm/v1/ps")
            answers = [shown, *map(client.get, paths)]
            assert [answer.status_code for answer in answers] == [200] * 5
            return "".join(answer.text for answer in answers)

        assert str(file) in told()
        key = KeyFile(tmp_path / "home" / "keys.json").create("asker", ["inference"])
        client.headers["authorization"] = f"Bearer {key}"
        assert str(tmp_path) not in told()
