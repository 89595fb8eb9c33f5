"""Who may talk to the daemon: the Host header (DNS rebinding), the Origin (browser pages), the content type, API keys.

Checked on every bind, before any body is read.
"""

import hmac
import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from localllm.errors import Forbidden, InvalidApiKey, LocalLLMError, UsageError
from localllm.server.http import HttpError, error_response
from localllm.server.operations import JSON, Directory, Operation
from localllm.settings import Settings

_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")
_LOCAL_ORIGIN_HOSTS = ("localhost", "127.0.0.1", "0.0.0.0", "::1")
_APP_SCHEMES = ("app", "file", "tauri", "vscode-webview", "vscode-file")
_ALLOWED_HEADERS = "authorization, content-type, prefer, x-api-key"
_BROWSER_SIGNS = ("origin", "referer", "cookie", "sec-fetch-site", "sec-fetch-mode")


@dataclass(frozen=True, slots=True)
class Rules:
    """What the guard goes by."""

    host: str
    keys: tuple[str, ...]
    origins: tuple[str, ...]
    machine: str

    @classmethod
    def of(cls, settings: Settings) -> "Rules":
        """UsageError where the daemon would be open to a network without a key."""
        rules = cls(settings.host, _listed(settings.api_keys), _listed(settings.origins), socket.gethostname().lower())
        if not rules.keys and not is_loopback(settings.host):
            raise UsageError(
                f"listening on {settings.host} needs an API key, because others can reach it",
                hint="`localllm config set api_keys KEY`, or set LOCALLLM_API_KEYS",
            )
        return rules


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

    def __init__(self, app: ASGIApp, rules: Rules, directory: Directory) -> None:
        self._app = app
        self._rules = rules
        self._directory = directory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            self._check_host(headers.getlist("host"))
            origin = self._checked_origin(headers.get("origin"))
            if scope["method"] == "OPTIONS" and origin:
                await _answer_preflight(send, origin, headers.get("access-control-request-headers", _ALLOWED_HEADERS))
                return
            operation = self._directory.find(scope["method"], scope["path"])
            check_content_type(scope["method"], headers, operation.takes if operation else JSON)
            self._check_key(operation, headers)
        except LocalLLMError as error:
            await error_response(error)(scope, receive, send)
            return
        await self._app(scope, receive, _with_origin(send, origin) if origin else send)

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

    def _checked_origin(self, origin: str | None) -> str | None:
        if origin is None or self._is_allowed_origin(origin):
            return origin
        raise Forbidden(
            f"pages from {origin[:200]!r} may not use this daemon",
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

    def _check_key(self, operation: Operation | None, headers: Headers) -> None:
        if not self._rules.keys or (operation is not None and operation.scope == "open"):
            return
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        # every key is compared, so that the time taken says nothing about which was nearly right
        matches = [hmac.compare_digest(given.encode(), key.encode()) for key in self._rules.keys]
        if not any(matches):
            message = "the API key is not valid" if given else "an API key is required"
            raise InvalidApiKey(message, hint="send `Authorization: Bearer KEY`")


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
    """Bodies are JSON, which makes browsers ask first. curl's own default passes where no browser can be behind it; so
    does anything where the route takes another media type than JSON."""
    if method not in ("POST", "PUT", "PATCH", "DELETE"):
        return
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return
    is_bare = not any(sign in headers for sign in _BROWSER_SIGNS)
    if is_bare and (takes != JSON or kind in ("", "application/x-www-form-urlencoded")):
        return
    raise HttpError(
        415, f"content type {kind or 'none'!r} is not accepted", hint="send `Content-Type: application/json`"
    )


async def _answer_preflight(send: Send, origin: str, wanted: str) -> None:
    """An allowed page may send whatever headers it asks for: OpenAI's client has a dozen of its own."""
    headers = MutableHeaders(raw=[])
    _allow(headers, origin)
    headers["access-control-allow-methods"] = "GET, POST, DELETE, OPTIONS"
    headers["access-control-allow-headers"] = wanted
    headers["access-control-max-age"] = "600"
    await send({"type": "http.response.start", "status": 204, "headers": headers.raw})
    await send({"type": "http.response.body", "body": b""})


def _allow(headers: MutableHeaders, origin: str) -> None:
    headers["access-control-allow-origin"] = origin
    headers["vary"] = "Origin"


def _with_origin(send: Send, origin: str) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            _allow(MutableHeaders(raw=message["headers"]), origin)
        await send(message)

    return sending
