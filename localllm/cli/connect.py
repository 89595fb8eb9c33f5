"""From settings to a client: the daemon of this home, or the one on another machine that LOCALLLM_HOST names."""

import socket
from contextlib import suppress

from localllm.client import Client
from localllm.settings import Settings

_ANY_ADDRESS = ("", "0.0.0.0", "::", "localhost")


def running_client(settings: Settings) -> Client | None:
    """A client of the daemon that runs now; None when none runs on this machine. Starts nothing."""
    if not is_this_machine(settings.host):
        return Client(remote_url(settings), first_key(settings))
    from localllm.daemon.lifecycle import find_daemon  # costs imports that a remote daemon does not need

    found = find_daemon(settings)
    return Client(found.url, found.token or first_key(settings)) if found else None


def started_client(settings: Settings) -> Client:
    """A client of the daemon, which is started if none runs. DaemonUnreachable when it does not come up."""
    if not is_this_machine(settings.host):
        return Client(remote_url(settings), first_key(settings))
    from localllm.daemon.lifecycle import ensure_daemon  # as above

    found = ensure_daemon(settings)
    return Client(found.url, found.token or first_key(settings))


def first_key(settings: Settings) -> str:
    return settings.api_keys.split(",")[0].strip()


def remote_url(settings: Settings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def as_seen_by_daemon(model: str) -> str:
    """A path made absolute, because a daemon has a working directory of its own; names as they are."""
    from localllm.store.names import looks_like_path, parse_ref  # what is a path is the store's to say

    return parse_ref(model).target if looks_like_path(model) else model


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
