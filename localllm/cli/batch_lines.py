"""The two files of a batch, in OpenAI's format: requests in, answers out, one JSON object a line."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from localllm.errors import UsageError


class Item(msgspec.Struct, frozen=True):
    """One request. `url` is a path below /v1 that is posted to."""

    custom_id: str
    method: str
    url: str
    body: dict[str, Any]

    def problem(self) -> str:
        """Why this line cannot be sent; empty when it can."""
        if self.method != "POST":
            return f"method must be POST, not {self.method!r}"
        if not self.url.startswith("/v1/") or any(sign in self.url for sign in "?#\r\n \\") or ".." in self.url:
            return f"url must be a path below /v1, not {self.url!r}"
        if self.body.get("stream"):
            return "body.stream must not be true: a batch holds whole answers"
        return ""


def check(path: Path) -> list[str]:
    """The ids of all lines. UsageError names the first line that is no request, or has another's id."""
    seen: dict[str, int] = {}
    for number, item in enumerate_items(path):
        if item.custom_id in seen:
            raise UsageError(
                f"{path}, line {number}: custom_id {item.custom_id!r} is that of line {seen[item.custom_id]}",
                hint="answers are told apart by it: give each line its own",
            )
        seen[item.custom_id] = number
        if problem := item.problem():
            raise UsageError(f"{path}, line {number}: {problem}", hint="mend that line; nothing was sent")
    return list(seen)


def enumerate_items(path: Path) -> Iterator[tuple[int, Item]]:
    """Line numbers from 1, and requests; blank lines are passed over."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, _item(path, number, line)


def _item(path: Path, number: int, line: bytes) -> Item:
    try:
        return msgspec.json.decode(line, type=Item)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"{path}, line {number} is no request: {error}",
            hint='a line looks like {"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {...}}',
        ) from None


class _Written(msgspec.Struct, frozen=True):
    custom_id: str
    response: dict[str, Any] | None = None
    error: Any = None

    @property
    def is_good(self) -> bool:
        return self.error is None and self.response is not None and self.response.get("status_code") == 200


class Output:
    """The answers written so far, and room for more. A last line that was torn by a crash is taken away."""

    def __init__(self, path: Path) -> None:
        self.done: dict[str, bool] = {}
        self._file: BinaryIO = path.open("a+b")
        try:
            self._keep(path)
        except UsageError:
            self.close()
            raise

    def _keep(self, path: Path) -> None:
        self._file.seek(0)
        end = 0
        for number, line in enumerate(self._file, start=1):
            is_last = not line.endswith(b"\n")
            try:
                written = msgspec.json.decode(line, type=_Written) if line.strip() else None
            except msgspec.MsgspecError:
                if not is_last:
                    raise UsageError(
                        f"{path}, line {number} is no answer of a batch", hint="name another file for the answers"
                    ) from None
                break
            if written is not None:
                self.done[written.custom_id] = written.is_good
            end += len(line)
            if is_last:
                self._file.write(b"\n")
                end += 1
        self._file.truncate(end)
        self._file.seek(0, os.SEEK_END)

    def write(self, custom_id: str, response: dict[str, Any] | None, error: dict[str, str] | None) -> bool:
        """One more answer, whole and on disk when this returns; whether it is a good one."""
        line = {"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id, "response": response, "error": error}
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._file.flush()
        is_good = error is None and response is not None and response["status_code"] == 200
        self.done[custom_id] = is_good
        return is_good

    def close(self) -> None:
        self._file.close()
