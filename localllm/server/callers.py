"""Who sends a request: the name and the scopes of its key.

Keys come from three places: the setting `api_keys` (all scopes), the home's key file (scopes of its own, see
`daemon/keys.py`), and a token that each daemon makes for itself and writes where only its user's programs read it.
"""

import hmac
import logging
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import msgspec
from starlette.requests import Request

from localllm.daemon.keys import Key, KeyFile, digest_of
from localllm.errors import Forbidden, StoreError
from localllm.server.operations import Scope
from localllm.settings import Settings
from localllm.store.entry import Entry
from localllm.store.names import looks_like_path

logger = logging.getLogger("localllm.server")

ALL_SCOPES: frozenset[Scope] = frozenset(("open", "inference", "manage"))


@dataclass(frozen=True, slots=True)
class Caller:
    """`name` is that of the key, empty where no keys are asked for: it says whose share of the machine is used."""

    name: str = ""
    scopes: frozenset[Scope] = ALL_SCOPES


ANYBODY = Caller()
OURSELVES = Caller("local")
STATE = "localllm.caller"
_PROGRAM = re.compile(r"[\w.+-]{1,40}", re.ASCII)
"""The first word of a user agent, before its version."""


def caller_of(request: Request) -> Caller:
    caller = request.scope.get(STATE, ANYBODY)
    assert isinstance(caller, Caller)
    return caller


def program_of(request: Request) -> str:
    """The program that asks, as it calls itself in its `user-agent`: `curl`, `claude-cli`; browsers are `browser`."""
    found = _PROGRAM.match(request.headers.get("user-agent", ""))
    name = found[0] if found else ""
    return "browser" if name == "Mozilla" else name


def seen_by(caller: Caller, entry: Entry) -> Entry:
    """The model as one may see it: where its files lie is for those who manage models."""
    if "manage" in caller.scopes:
        return entry
    parent = "" if looks_like_path(entry.parent) else entry.parent
    return msgspec.structs.replace(entry, path=entry.name, parent=parent)


def check_names(caller: Caller, names: Iterable[object]) -> None:
    """Forbidden where one who may not manage models names a file: which files there are is nobody else's business."""
    if "manage" in caller.scopes:
        return
    for name in names:
        if isinstance(name, str) and looks_like_path(name.strip()):
            raise Forbidden(
                f"the key {caller.name!r} may name models, but no files",
                hint="`localllm keys create NAME --scope inference --scope manage` makes one that may",
            )


class Callers:
    """Everybody who has a key. `token` is for the programs of the user whose daemon this is."""

    def __init__(self, settings: Settings, *, is_loopback: bool) -> None:
        self.token = secrets.token_urlsafe(32)
        self._is_loopback = is_loopback
        self._file = KeyFile(settings.keys_file)
        self._configured = tuple(_configured(settings))
        self._ours = digest_of(self.token)
        self._is_file_broken = False

    @property
    def are_named(self) -> bool:
        """Whether a key is asked for: off loopback, and wherever there is one. A key file that makes no sense counts
        as one that lets nobody in."""
        return not self._is_loopback or self.have_keys or self._is_file_broken

    @property
    def have_keys(self) -> bool:
        return bool(self._configured or self._filed())

    def who(self, given: str) -> Caller | None:
        """Whose key this is. Every key is compared, and as a hash, so that the time taken says nothing about which was
        nearly right."""
        digest, found = digest_of(given), None
        for known, caller in ((self._ours, OURSELVES), *self._configured):
            if hmac.compare_digest(digest, known):
                found = caller
        for key in self._filed():
            if hmac.compare_digest(digest, key.digest):
                self._file.note_use(key, time.time())
                found = Caller(key.name, frozenset[Scope](("open", *key.scopes)))
        return found

    def _filed(self) -> tuple[Key, ...]:
        try:
            keys, is_broken = self._file.all(), False
        except (StoreError, OSError) as error:
            keys, is_broken = (), True
            if not self._is_file_broken:
                logger.error("nobody gets in by a key of the file: %s", error)
        self._is_file_broken = is_broken
        return keys


def _configured(settings: Settings) -> Iterator[tuple[str, Caller]]:
    """The first is named for where it was set, the others are numbered."""
    place = "config" if settings.origin["api_keys"] == "config file" else "env"
    keys = [key.strip() for key in settings.api_keys.split(",") if key.strip()]
    for number, key in enumerate(keys, start=1):
        yield digest_of(key), Caller(place if number == 1 else f"{place}-{number}")
