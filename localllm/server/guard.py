"""Who may talk to the daemon: the Host header (DNS rebinding), the Origin (browser pages), the content type, API keys.

Checked on every bind, before any body is read. What proxies say about the sender (`X-Forwarded-...`) is not believed.
"""

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import parse_qsl, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localllm.errors import Forbidden, InvalidApiKey, LocalLLMError, UsageError
from localllm.server.callers import ANYBODY, STATE, Caller, Callers, check_names
from localllm.server.http import MAX_BODY, HttpError, error_response
from localllm.server.named import STATE as NAME
from localllm.server.operations import JSON, Directory, Operation
from localllm.settings import Settings

_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
_LOCAL_ORIGIN_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0", "::1")
_APP_SCHEMES = ("app", "file", "tauri", "vscode-webview", "vscode-file")
_ALLOWED_HEADERS = "authorization, content-type, prefer, x-api-key"
_BY_DEFAULT = ("", "application/x-www-form-urlencoded", "application/octet-stream", "text/plain")
"""Media types of bodies that a program named none for: nothing, curl's, aiohttp's, Node's."""
_BROWSER_SIGNS = ("origin", "referer", "cookie", "sec-fetch-site")  # Node's fetch has a sec-fetch-mode, too
MAX_HEADER_BYTES = 32 * 2**10
MAX_HEADERS = 128


@dataclass(frozen=True, slots=True)
class Rules:
    """What the guard goes by, besides keys."""

    host: str
    origins: tuple[str, ...]
    machine: str
    max_body_bytes: int

    @classmethod
    def of(cls, settings: Settings) -> "Rules":
        machine = socket.gethostname().lower()
        return cls(settings.host, _listed(settings.origins), machine, settings.max_body_mb * 2**20)


def callers_for(settings: Settings) -> Callers:
    """Those who have keys. UsageError where the daemon would be open to a network without one."""
    callers = Callers(settings, is_loopback=is_loopback(settings.host))
    if callers.are_named and not callers.have_keys and not is_loopback(settings.host):
        raise UsageError(
            f"listening on {settings.host} needs an API key, because others can reach it",
            hint="`localllm keys create NAME` makes one",
        )
    return callers


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Guard:
    """ASGI middleware; refusals are ordinary error bodies."""

    def __init__(self, app: ASGIApp, gate: "Gate", directory: Directory) -> None:
        self._app = app
        self._gate = gate
        self._directory = directory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            origin = self._gate.sender(scope, headers)
            if scope["method"] == "OPTIONS" and origin:
                await _answer_preflight(send, origin, headers.get("access-control-request-headers", _ALLOWED_HEADERS))
                return
            caller = scope[STATE] = self._gate.caller(
                scope, headers, self._directory.find(scope["method"], scope["path"])
            )
            if "manage" not in caller.scopes:
                queried = (value for _, value in parse_qsl(scope.get("query_string", b"").decode("latin-1")))
                check_names(caller, [*self._directory.names(scope["path"]), *queried])
        except LocalLLMError as error:
            response = error_response(error, scope["path"], scope.get(NAME, ""))
            if _is_ambiguous(headers):
                response.headers["connection"] = "close"
            await response(scope, receive, send)
            return
        scope[MAX_BODY] = self._gate.max_body_bytes
        await self._app(scope, receive, _with_headers(send, origin))


class Gate:
    """What is checked of a request's head; every method raises what keeps the request out."""

    def __init__(self, rules: Rules, callers: Callers) -> None:
        self._rules = rules
        self._callers = callers

    @property
    def max_body_bytes(self) -> int:
        return self._rules.max_body_bytes

    def sender(self, scope: Scope, headers: Headers) -> str | None:
        """The page that sends it, if one does."""
        _check_size(scope["headers"])
        _check_framing(headers)
        if "host" in headers or scope.get("http_version") != "1.0":  # no browser is so old; HAProxy's checks are
            self._check_host(headers.getlist("host"))
        return self._checked_origin(headers.getlist("origin"))

    def caller(self, scope: Scope, headers: Headers, operation: Operation | None) -> Caller:
        """Whose key it has. `operation` is None for what is not there."""
        if operation is not None:  # what is not there is not found, whatever was sent
            check_content_type(scope["method"], headers, operation.takes)
        return self._caller(operation, headers)

    def _check_host(self, hosts: Sequence[str]) -> None:
        if len(hosts) != 1 or not self._is_our_name(_host_name(hosts[0])):
            shown = hosts[0] if hosts else "none"
            raise Forbidden(
                f"requests for host {shown!r} are not answered",
                hint="use localhost or an IP address, not a name that others control",
            )

    def _is_our_name(self, name: str) -> bool:
        if name in ("localhost", self._rules.machine, self._rules.host.lower()) or name.endswith(_LOCAL_SUFFIXES):
            return bool(name)
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        # a literal address cannot be rebound; off loopback it is how other machines call us
        return address.is_loopback or address.is_private or address.is_unspecified or not is_loopback(self._rules.host)

    def _checked_origin(self, origins: Sequence[str]) -> str | None:
        if not origins:
            return None
        if len(origins) == 1 and self._is_allowed_origin(origins[0]):
            return origins[0]
        raise Forbidden(
            f"pages from {origins[0][:200]!r} may not use this daemon",
            hint="`localllm config set origins ORIGIN` allows it",
        )

    def _is_allowed_origin(self, origin: str) -> bool:
        if any(fnmatchcase(origin, pattern) for pattern in self._rules.origins):
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        return parts.scheme in _APP_SCHEMES or (
            parts.scheme in ("http", "https") and parts.hostname in _LOCAL_ORIGIN_HOSTS
        )

    def _caller(self, operation: Operation | None, headers: Headers) -> Caller:
        """InvalidApiKey or Forbidden where keys are asked for and this is not one for the operation."""
        if not self._callers.are_named:
            return ANYBODY
        given = _given_key(headers)
        caller = self._callers.who(given) if given else None
        if operation is not None and operation.scope == "open":
            return caller or ANYBODY
        if caller is None:
            message = "the API key is not valid" if given else "an API key is required"
            raise InvalidApiKey(message, hint="send `Authorization: Bearer KEY`")
        if operation is not None and operation.scope not in caller.scopes:
            raise Forbidden(
                f"the key {caller.name!r} is not one for {_MEANINGS[operation.scope]}",
                hint=f"`localllm keys create NAME --scope {operation.scope}` makes one",
            )
        return caller


_MEANINGS = {"inference": "asking models", "manage": "managing models"}


def _given_key(headers: Headers) -> str:
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    return bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")


def _check_size(headers: Sequence[tuple[bytes, bytes]]) -> None:
    """The parser bounds only what arrives in pieces; headers that come at once can be larger."""
    if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER_BYTES:
        raise HttpError(
            431, f"the request headers are longer than {MAX_HEADER_BYTES // 2**10} KiB or more than {MAX_HEADERS}"
        )


def _is_ambiguous(headers: Headers) -> bool:
    """Two lengths of one body: a proxy may go by the other one, and see a request where we see a body."""
    return "transfer-encoding" in headers and "content-length" in headers


def _check_framing(headers: Headers) -> None:
    if _is_ambiguous(headers):
        raise HttpError(400, "a body has a Content-Length or comes in chunks, not both", hint="leave one header out")


def _host_name(host: str) -> str:
    """The name or address in a Host header, lower case; empty for one that makes no sense."""
    try:
        parts = urlsplit(f"//{host}")
        _ = parts.port
    except ValueError:
        return ""
    is_plain = not (parts.path or parts.query or parts.fragment or "@" in parts.netloc)
    return (parts.hostname or "").rstrip(".") if is_plain else ""


def check_content_type(method: str, headers: Headers, takes: str) -> None:
    """Bodies are JSON, which makes browsers ask first; before every method but POST they do so anyway. What curl,
    aiohttp and Node call bodies of their own accord passes where no browser can be behind it; so does anything where
    the route takes another media type than JSON."""
    if method not in ("POST", "PUT", "PATCH", "DELETE"):
        return
    packed = headers.get("content-encoding", "identity").strip().lower()
    if packed not in ("", "identity"):  # a kilobyte of gzip can hold a gigabyte
        raise HttpError(415, f"bodies packed as {packed[:40]!r} are not accepted", hint="send it unpacked")
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if method != "POST" and not kind:
        return
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return
    is_bare = not any(sign in headers for sign in _BROWSER_SIGNS)
    if is_bare and (takes != JSON or kind in _BY_DEFAULT):
        return
    raise HttpError(
        415, f"content type {kind or 'none'!r} is not accepted", hint="send `Content-Type: application/json`"
    )


async def _answer_preflight(send: Send, origin: str, wanted: str) -> None:
    """An allowed page may send whatever headers it asks for: OpenAI's client has a dozen of its own."""
    headers = MutableHeaders(raw=[])
    _allow(headers, origin)
    headers["access-control-allow-methods"] = "GET, HEAD, POST, DELETE, OPTIONS"
    headers["access-control-allow-headers"] = wanted
    headers["access-control-max-age"] = "600"
    await send({"type": "http.response.start", "status": 204, "headers": headers.raw})
    await send({"type": "http.response.body", "body": b""})


def _allow(headers: MutableHeaders, origin: str) -> None:
    headers["access-control-allow-origin"] = origin
    headers["vary"] = "Origin"


def _with_headers(send: Send, origin: str | None) -> Send:
    """Answers are never taken for scripts or pictures by a page that may not read them."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            headers["x-content-type-options"] = "nosniff"
            headers["cross-origin-resource-policy"] = "same-origin"
            if origin:
                _allow(headers, origin)
        await send(message)

    return sending
