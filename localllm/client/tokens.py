"""Text as tokenizers see it."""

from localllm.client.transport import Transport


class TokenCalls:
    """Text as tokenizers see it."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
