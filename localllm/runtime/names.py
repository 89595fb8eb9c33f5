"""A model's name, file or folder to what the store knows of it. Reads the store only; starts and downloads nothing."""

from __future__ import annotations

from pathlib import Path

from localllm.models.hf_facts import check_config
from localllm.models.mapping import runnable
from localllm.settings import Settings, load_settings
from localllm.store.entry import Entry
from localllm.store.library import Library


def open_library(settings: Settings | None = None) -> Library:
    """The store of these settings, which refuses models that no backend here can run."""
    return Library(settings or load_settings(), can_run=runnable, check_config=check_config)


def find_entry(model: str | Path, settings: Settings | None = None) -> Entry:
    """The store's entry for a name, file or folder; ModelNotFound with a suggestion."""
    return open_library(settings).find(str(model))


def model_path(model: str | Path, settings: Settings | None = None) -> Path:
    return Path(find_entry(model, settings).path)
