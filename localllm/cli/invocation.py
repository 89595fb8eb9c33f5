"""What every command gets: the global flags, and from them settings, a client and a progress line."""

import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from localllm.settings import Settings, load_settings

if TYPE_CHECKING:
    from localllm.cli.progress import Progress


@dataclass(frozen=True, slots=True)
class Invocation:
    """The flags before the command's name."""

    host: str | None = None
    is_offline: bool = False
    is_quiet: bool = False
    may_color: bool = True

    @staticmethod
    def of(ctx: typer.Context) -> "Invocation":
        found = ctx.find_object(Invocation)
        return found if isinstance(found, Invocation) else Invocation()

    def settings(self, **flags: Any) -> Settings:
        """Settings in force; `flags` are this command's own options. UsageError for a bad config file."""
        named = {"host": self.host, "offline": self.is_offline or None, **flags}
        return load_settings(**{name: value for name, value in named.items() if value is not None})

    def progress(self, *, is_quiet: bool = False, delay_s: float = 0.0) -> "Progress":
        from localllm.cli.progress import Progress  # only commands that wait need it

        return Progress(sys.stderr, is_quiet=self.is_quiet or is_quiet, delay_s=delay_s)

    def has_color(self, stream: Any) -> bool:
        """Colour goes to terminals only, and never where NO_COLOR is set (https://no-color.org)."""
        allowed = self.may_color and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        return bool(allowed and stream.isatty())
