"""Keys: hashed at rest, named, scoped, asked for wherever there is one, worthless the moment they are revoked."""

import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from localllm.daemon.home import Address, read_address, write_address
from localllm.daemon.keys import KeyFile
from localllm.errors import LocalLLMError, StoreError, UsageError
from localllm.server.callers import Callers
from localllm.server.guard import callers_for
from localllm.settings import load_settings
from tests.cli.conftest import Cli, cli  # noqa: F401  # a fixture
from tests.server.world import World, daemon

CHAT = {"model": "toy:1b", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with daemon(tmp_path) as world:
        yield world


@pytest.fixture
def file(tmp_path: Path) -> KeyFile:
    return KeyFile(tmp_path / "keys.json")


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def asked(world: World, key: str) -> int:
    return world.client.post("/v1/chat/completions", json=CHAT, headers=bearer(key)).status_code


def managed(world: World, key: str) -> int:
    return world.client.post("/localllm/v1/stop", json={"model": "toy:1b"}, headers=bearer(key)).status_code


def test_a_key_is_256_random_bits_and_only_its_hash_is_kept_for_its_owner_alone(file: KeyFile) -> None:
    secrets = {file.create(f"k{number}", ["inference"]) for number in range(20)}
    assert len(secrets) == 20 and all(len(secret) == len("llm-") + 43 for secret in secrets)
    kept = file.path.read_text()
    assert not any(secret in kept or secret[4:] in kept for secret in secrets)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


def test_the_first_key_closes_the_api_and_each_opens_what_it_is_for(world: World, file: KeyFile) -> None:
    assert world.client.get("/v1/models").status_code == 200
    asker = file.create("asker", ["inference"])
    manager = file.create("manager", ["manage"])
    both = file.create("both", ["inference", "manage"])
    assert world.client.get("/v1/models").status_code == 401
    assert [asked(world, key) for key in ("", "wrong", asker, manager, both)] == [401, 401, 200, 403, 200]
    assert [managed(world, key) for key in ("", "wrong", asker, manager, both)] == [401, 401, 403, 200, 200]
    assert world.client.get("/health").status_code == 200


def test_a_refusal_says_which_key_lacks_what_and_how_to_get_it(world: World, file: KeyFile) -> None:
    key = file.create("asker", ["inference"])
    answer = world.client.post("/localllm/v1/stop", json={}, headers=bearer(key))
    error = answer.json()["error"]
    assert answer.status_code == 403 and error["type"] == "permission_error"
    assert "'asker'" in error["message"] and "--scope manage" in error["hint"]
    missing = world.client.get("/v1/models")
    assert missing.headers["www-authenticate"] == "Bearer" and missing.json()["error"]["code"] == "invalid_api_key"


def test_a_revoked_key_is_worthless_at_the_next_request_without_a_restart(world: World, file: KeyFile) -> None:
    kept, gone = file.create("kept", ["inference"]), file.create("gone", ["inference"])
    assert (asked(world, kept), asked(world, gone)) == (200, 200)
    file.revoke("gone")
    assert (asked(world, kept), asked(world, gone)) == (200, 401)


def test_a_daemon_notes_when_a_key_was_used(world: World, file: KeyFile) -> None:
    key = file.create("used", ["inference"])
    file.create("idle", ["inference"])
    assert asked(world, key) == 200
    used, idle = file.all()
    assert used.last_used is not None and used.last_used >= used.created and idle.last_used is None


def test_the_users_own_programs_get_in_by_the_address_file(tmp_path: Path) -> None:
    settings = load_settings({"LOCALLLM_HOME": str(tmp_path)}, api_keys="secret")
    callers = Callers(settings, is_loopback=True)
    who = callers.who(callers.token)
    assert who is not None and who.name == "local" and who.scopes == {"open", "inference", "manage"}
    path = tmp_path / "daemon.json"
    mask = os.umask(0)
    try:
        write_address(path, Address("127.0.0.1", 1, 1, "1", 0.0, "i", callers.token))
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = read_address(path)
    assert found is not None and found.token == callers.token


def test_keys_of_the_settings_work_beside_those_of_the_file(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    filed = file.create("filed", ["inference"])
    with daemon(tmp_path, api_keys="first, second") as world:
        assert [managed(world, key) for key in ("first", "second", filed)] == [200, 200, 403]
        assert [asked(world, key) for key in ("first", "second", filed)] == [200, 200, 200]


def test_a_key_is_accepted_in_the_headers_that_clients_use_and_nowhere_else(world: World, file: KeyFile) -> None:
    key = file.create("k", ["inference"])

    def got(headers: dict[str, str], query: str = "") -> int:
        return world.client.get("/v1/models" + query, headers=headers).status_code

    assert got(bearer(key)) == got({"x-api-key": key}) == got({"authorization": f"bearer {key}"}) == 200
    assert got({"authorization": key}) == got({"authorization": f"Basic {key}"}) == got({}, f"?api_key={key}") == 401
    assert got({"cookie": f"api_key={key}"}) == 401


@pytest.mark.parametrize("content", ["", "{", "[]", '{"keys": 1}', '{"keys": [{"name": "x"}]}', '{"keys": [], "a": 1}'])
def test_a_broken_key_file_lets_nobody_in(world: World, file: KeyFile, content: str) -> None:
    file.path.write_text(content)
    file.path.chmod(0o600)
    assert world.client.get("/v1/models").status_code == 401
    assert world.client.get("/v1/models", headers=bearer("x")).status_code == 401


def test_a_key_file_that_others_may_read_lets_nobody_in_and_says_why(world: World, file: KeyFile) -> None:
    key = file.create("k", ["inference"])
    file.path.chmod(0o644)
    assert asked(world, key) == 401
    with pytest.raises(StoreError, match="read by others"):
        KeyFile(file.path).all()


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 65, "-x", "a\n", "\x1b[31m", "é"])
def test_names_of_keys_are_plain(file: KeyFile, name: str) -> None:
    with pytest.raises(UsageError):
        file.create(name, ["inference"])


def test_two_keys_cannot_have_one_name_and_what_is_not_there_cannot_be_revoked(file: KeyFile) -> None:
    file.create("twin", ["inference"])
    with pytest.raises(UsageError, match="already"):
        file.create("twin", ["inference"])
    with pytest.raises(UsageError, match="no key"):
        file.revoke("nobody")


def test_keys_made_at_the_same_time_are_all_kept(file: KeyFile) -> None:
    failures: list[Exception] = []

    def make(number: int) -> None:
        try:
            KeyFile(file.path).create(f"k{number}", ["inference"])
        except LocalLLMError as error:
            failures.append(error)

    threads = [threading.Thread(target=make, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures and len(file.all()) == 16


# ---- the command line


def test_a_key_is_made_listed_and_revoked_and_shown_once(cli: Cli) -> None:  # noqa: F811
    made = cli("keys", "create", "phone", "--scope", "inference", "--scope", "manage")
    secret = made.out.strip()
    assert made.code == 0 and secret.startswith("llm-") and "not shown again" in made.err
    listed = cli("keys", "list")
    assert "phone" in listed.out and "inference, manage" in listed.out and secret not in listed.out
    assert "Never" in listed.out
    (row,) = json.loads(cli("keys", "list", "--json").out)
    assert row["name"] == "phone" and set(row) == {"name", "scopes", "created", "last_used"}
    assert cli("keys", "revoke", "phone").code == 0
    assert json.loads(cli("keys", "list", "--json").out) == []
    assert cli("keys", "revoke", "phone").code == 2


def test_a_key_without_a_name_gets_one_and_without_a_scope_asks_only(cli: Cli) -> None:  # noqa: F811
    names = [json.loads(cli("keys", "create", "--json").out) for _ in range(2)]
    assert [each["name"] for each in names] == ["key-1", "key-2"]
    assert all(each["scopes"] == ["inference"] for each in names)
    assert cli("keys", "create", "--scope", "everything").code == 2


def test_the_list_of_settings_hides_keys(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setenv("LOCALLLM_API_KEYS", "hush-hush, other-one")
    for args in (("config", "list"), ("config", "list", "--origin"), ("config", "list", "--json")):
        shown = cli(*args).out
        assert "hush" not in shown and "other-one" not in shown and "2 hidden" in shown


def test_a_config_file_that_may_hold_keys_is_its_owners(cli: Cli) -> None:  # noqa: F811
    assert cli("config", "set", "api_keys", "secret").code == 0
    path = Path(os.environ["LOCALLLM_HOME"]) / "config.toml"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_daemon_off_loopback_wants_a_key_and_one_of_the_file_will_do(tmp_path: Path) -> None:
    settings = load_settings({"LOCALLLM_HOME": str(tmp_path)}, host="0.0.0.0")
    with pytest.raises(UsageError, match="needs an API key"):
        callers_for(settings)
    file = KeyFile(tmp_path / "keys.json")
    key = file.create("k", ["inference"])
    callers = callers_for(settings)
    assert callers.are_named and callers.who(key) is not None
    file.revoke("k")
    assert callers.are_named and callers.who(key) is None, "without any key left it stays closed"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_leaves_the_keys_as_they_were_and_no_half_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = KeyFile(tmp_path / "keys.json")
    file.create("first", ["inference"])
    before = file.path.read_bytes()
    really = os.open

    def full(path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = really(path, flags, mode)
        if Path(path).suffix != ".tmp":
            return descriptor
        os.close(descriptor)
        return really("/dev/full", os.O_WRONLY)

    monkeypatch.setattr("localllm.daemon.keys.os.open", full)
    with pytest.raises(OSError):
        file.create("second", ["inference"])
    monkeypatch.undo()
    assert file.path.read_bytes() == before and not list(tmp_path.glob("*.tmp"))
