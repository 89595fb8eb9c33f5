"""What one page of KV memory holds, as the dashboard is told: the source of its API description."""

from typing import Literal

import msgspec

PageState = Literal["free", "cached", "held", "shared"]


class PageToken(msgspec.Struct):
    """`text` has U+FFFD where the bytes are no characters on their own."""

    id: int
    text: str
    bytes: list[int]


class Holder(msgspec.Struct):
    """A request that holds the page: as its tokens `start` up to `end`. `id` is null where it is somebody else's;
    `serial` is its short number, 0 where it is not shown."""

    id: str | None
    serial: int
    start: int
    end: int


class ChainLink(msgspec.Struct):
    """A page on the way to the root: the start of its hash, how many sequences hold it, and the requests among them
    that may be seen. `page` is null where it is not in memory any more."""

    page: int | None
    hash: str
    holders: int
    requests: list[str]


class PageDetails(msgspec.Struct, kw_only=True):
    """A page at this moment. `start` to `end` are the places of its tokens in whatever holds it; `tokens` is null where
    they are not the caller's to read. `chain` begins with the page itself, if it is full, and goes back to the root,
    `chain_length` pages in all, of which the first are listed."""

    model: str
    page: int
    state: PageState
    references: int
    start: int
    end: int
    holders: list[Holder]
    tokens: list[PageToken] | None
    chain: list[ChainLink]
    chain_length: int
    object: Literal["page"] = "page"
