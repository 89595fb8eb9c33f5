"""Looking inside answers and pages."""

from localllm.client.transport import Transport


class LookingCalls:
    """Looking inside answers and pages."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
