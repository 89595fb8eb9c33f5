"""What the dashboard asks of a daemon beside the feed: a page's content, a request's beginning, which requests run."""

from __future__ import annotations

from localllm.client import Client
from localllm.client.looking import PageDetails
from localllm.daemon.feed import RequestEvent
from localllm.safe_text import sanitize
from localllm.tui.dashboard.page_line import ChainLink, PageText

OVER = ("finished", "failed")


def ask_page(client: Client, model: str, page: int) -> PageText:
    """LocalLLMError where the model is not loaded any more."""
    return page_text(client.looking.page(model, page), model)


def page_text(told: PageDetails, model: str) -> PageText:
    tokens = tuple(sanitize(token.text) for token in told.tokens or ())
    links = tuple(ChainLink(sanitize(link.hash), link.holders, link.requests) for link in told.chain)
    return PageText(model, told.page, tokens, told.start if tokens else None, links, told.chain_length)


def ask_events(client: Client, request_id: str) -> list[RequestEvent]:
    """Everything that happened to a request. LocalLLMError where it is not known any more."""
    told = client.looking.request(request_id)
    return [
        RequestEvent(
            id=told.id, model=told.model, route=told.route, name=event.name, at=event.at, time=event.time,
            data=event.data, serial=event.serial, source=event.source, priority=event.priority,
        )
        for event in told.events
    ]  # fmt: skip


def ask_running(client: Client) -> list[str]:
    """The ids of the requests under way."""
    return [row.id for row in client.requests() if row.state not in OVER]
