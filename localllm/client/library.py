"""Models on the disk, in the catalog and on the hub, and pulls of them."""

from localllm.client.transport import Transport


class LibraryCalls:
    """Models on the disk, in the catalog and on the hub, and pulls of them."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
