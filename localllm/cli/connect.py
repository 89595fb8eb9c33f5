"""From settings to a client: the daemon of this home, or the one on another machine that LOCALLLM_HOST names, or
OLLAMA_HOST where no setting of ours does."""

import socket
from contextlib import suppress
from functools import lru_cache
from urllib.parse import urlsplit

from localllm.cli.failures import print_warning
from localllm.client import Client
from localllm.errors import LocalLLMError, UsageError
from localllm.settings import DEFAULT_PORT, Settings

OLLAMA_PORT = 11434

_ANY_ADDRESS = ("", "0.0.0.0", "::", "localhost")


def running_client(settings: Settings) -> Client | None:
    """A client of the daemon that runs now; None when none runs on this machine. Starts nothing. DaemonUnreachable for
    one that is stuck, or about to end."""
    if (url := elsewhere(settings)) is not None:
        return Client(url, first_key(settings))
    # costs imports that a remote daemon does not need
    from localllm.daemon.lifecycle import find_daemon, silent_daemon

    found = find_daemon(settings)
    if found is None and (silent := silent_daemon(settings)):
        raise silent
    return Client(found.url, found.token or first_key(settings)) if found else None


def started_client(settings: Settings) -> Client:
    """A client of the daemon, which is started if none runs. DaemonUnreachable when it does not come up."""
    if (url := elsewhere(settings)) is not None:
        return Client(url, first_key(settings))
    from localllm.daemon.lifecycle import ensure_daemon  # as above

    found = ensure_daemon(settings)
    return Client(found.url, found.token or first_key(settings))


def elsewhere(settings: Settings) -> str | None:
    """Where the daemon is that commands talk to; None: on this machine, as this home's address file says."""
    if settings.origin["host"] != "default" or not settings.remote:
        return _beside_ours(settings) if is_this_machine(settings.host) else remote_url(settings)
    origin = settings.origin["remote"]
    is_ollamas = "OLLAMA_HOST" in origin
    url = address_url(settings.remote, OLLAMA_PORT if is_ollamas else DEFAULT_PORT)
    if url is None:
        print_warning(f"{settings.remote!r} cannot be talked to ({origin}); the daemon of this machine is used")
        return None
    if is_this_machine(urlsplit(url).hostname or ""):
        return None  # where a daemon of this home listens is known without it
    return url if not is_ollamas or _answers_as_ours(url, first_key(settings)) else None


def _beside_ours(settings: Settings) -> str | None:
    """`--host` with a port means that very daemon, such as the near end of a tunnel, and no other of this machine.
    None: it is this home's, or can become it."""
    if not settings.origin["host"].startswith("flag") or settings.origin["port"] != settings.origin["host"]:
        return None
    from localllm.daemon.lifecycle import find_daemon  # as above

    own, url = find_daemon(settings), remote_url(settings)
    if own is not None:
        return None if own.port == settings.port else url
    try:
        return url if Client(url, first_key(settings)).health().version else None
    except LocalLLMError:
        return None  # nobody is there yet: a daemon of this home may be started there


def address_url(text: str, default_port: int) -> str | None:
    """An address as OLLAMA_HOST may hold it; None for what is none that we can talk to. With a scheme its own port is
    meant."""
    text = text.strip().strip("'\"")
    whole = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(whole)
        port = parts.port
    except ValueError:
        return None
    if parts.scheme != "http" or parts.path.strip("/") or parts.username or parts.query:
        return None
    if port is None:
        port = 80 if "://" in text else default_port
    host = parts.hostname or "127.0.0.1"
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


@lru_cache(maxsize=4)  # one command asks several times, and is to be warned once
def _answers_as_ours(url: str, key: str) -> bool:
    """Many have OLLAMA_HOST set for Ollama itself: that must not keep their commands from working here."""
    try:
        if Client(url, key).health().version:
            return True
    except LocalLLMError:
        pass
    print_warning(f"OLLAMA_HOST leads to {url}, where no localllm answers; the daemon of this machine is used")
    return False


def first_key(settings: Settings) -> str:
    return settings.api_keys.split(",")[0].strip()


def remote_url(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{host}:{settings.port}"
    try:
        urlsplit(url)
    except ValueError:
        hint = "addresses look like 127.0.0.1:11435, or [::1]:11435"
        raise UsageError(f"{settings.host!r} is no address", hint=hint) from None
    return url


def as_seen_by_daemon(model: str) -> str:
    """A path made absolute, because a daemon has a working directory of its own; names as they are. UsageError for
    an empty one."""
    from localllm.store.names import looks_like_path, parse_ref  # what is a path is the store's to say

    return parse_ref(model).target if looks_like_path(model) or not model.strip() else model


def is_this_machine(host: str) -> bool:
    """Whether a daemon here could listen on `host`: an address that can be bound is one of ours."""
    if host in _ANY_ADDRESS or host.startswith("127.") or host == "::1":
        return True
    with suppress(OSError):
        for family, kind, protocol, _, address in socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.bind(address)
                return True
    return False
