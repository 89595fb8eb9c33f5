"""Hugging Face hub."""

from localllm.store.catalog import Source
from localllm.store.plan import Fetched, Plan, SourceUnavailable


def fetch_hub(source: Source, plan: Plan) -> Fetched:
    raise SourceUnavailable("Hugging Face hub cannot be reached (todo)")
