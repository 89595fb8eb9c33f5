"""JSON values over a pipe: four bytes of length (big end first), then as many bytes of JSON."""

import json
import struct
from typing import IO, Any

MAX_FRAME_BYTES = 64 << 20
_HEADER = struct.Struct(">I")


def read_frame(pipe: IO[bytes]) -> Any:
    """The next value; None at the end of the input. Raises ValueError for a frame out of measure or no JSON."""
    header = pipe.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    (size,) = _HEADER.unpack(header)
    if size > MAX_FRAME_BYTES:
        raise ValueError(f"a frame of {size} bytes")
    body = pipe.read(size)
    return json.loads(body) if len(body) == size else None


def write_frame(pipe: IO[bytes], value: Any) -> None:
    """Raises TypeError for what JSON cannot hold, ValueError for a frame out of measure, OSError for a closed pipe."""
    body = json.dumps(value).encode()
    if len(body) > MAX_FRAME_BYTES:
        raise ValueError(f"{len(body)} bytes are more than the {MAX_FRAME_BYTES} of one frame")
    pipe.write(_HEADER.pack(len(body)) + body)
    pipe.flush()
