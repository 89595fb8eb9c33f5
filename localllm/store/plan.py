"""What every source needs to know, and what it gives back."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localllm.errors import BadModelFile, LocalLLMError, UnsupportedModel
from localllm.settings import Settings
from localllm.store.blobs import FreeBytes, free_bytes
from localllm.store.entry import ModelFile, PullEvent, SourceKind

Say = Callable[[PullEvent], None]
# (architecture, names of block types) to the reason why this build cannot run them, or None when it can
CanRun = Callable[[str, tuple[str, ...]], str | None]
# a config.json to nothing; raises what is wrong with it
CheckConfig = Callable[[Mapping[str, Any]], object]


class SourceUnavailable(LocalLLMError):
    """This source cannot give the model now; the next one may. `error` is what to raise when there is no next one."""

    code = "network_error"
    http_status = 502
    exit_code = 7

    def __init__(self, message: str, *, error: LocalLLMError | None = None) -> None:
        super().__init__(message)
        self.error = error


@dataclass(frozen=True, slots=True)
class Plan:
    """One pull: for whom, with which settings, and how it reports. `quant` is the tag asked for, "" for the default.
    `owned`: files (their real paths) that an earlier pull of ours brought."""

    name: str
    settings: Settings
    say: Say
    architecture: str = ""
    quant: str = ""
    default_quants: tuple[str, ...] = ()
    can_run: CanRun | None = None
    check_config: CheckConfig | None = None
    owned: frozenset[str] = frozenset()
    free: FreeBytes = free_bytes
    pause: Callable[[float], None] = time.sleep

    @property
    def files_dir(self) -> Path:
        return self.settings.store_dir / "files"

    def status(self, message: str) -> None:
        self.say(PullEvent(kind="status", message=message))

    def warn(self, message: str) -> None:
        self.say(PullEvent(kind="warning", message=message))

    def progress(self, file: str, done: int, total: int, resumed: int = 0, sha256: str = "", partial: str = "") -> None:
        self.say(
            PullEvent(
                kind="progress",
                message=file,
                file=file,
                completed_bytes=done,
                total_bytes=total,
                resumed_bytes=resumed,
                sha256=sha256,
                partial=partial,
            )
        )

    def refusal(self, architecture: str, types: tuple[str, ...] = ()) -> str | None:
        """Why this build cannot run such a model; None when it can, or when nobody can tell yet."""
        return self.can_run(architecture, types) if self.can_run and architecture else None

    def refuse_unless_runnable(self, architecture: str, types: tuple[str, ...] = ()) -> None:
        if reason := self.refusal(architecture, types):
            raise UnsupportedModel(
                f"{self.name}: {reason}", hint="nothing was downloaded; `localllm search` shows other models"
            )

    def refuse_config(self, config: Mapping[str, Any]) -> None:
        """The error of a config.json that this build cannot run, under this pull's name."""
        if self.check_config is None:
            return
        try:
            self.check_config(config)
        except (UnsupportedModel, BadModelFile) as error:
            hint = f"no weights were downloaded; {error.hint}" if error.hint else "no weights were downloaded"
            raise type(error)(f"{self.name}: {error.message}", hint=hint) from None


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a source put on disk."""

    source: SourceKind
    path: Path
    files: tuple[ModelFile, ...]
    quant: str = ""
    license: str = ""
    origin: dict[str, str] = field(default_factory=dict)
