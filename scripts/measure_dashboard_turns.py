"""The engine part of measure_dashboard: streams that never end, looked at and not looked at in turns of a second.

A machine is faster in one minute than in the next by more than what is to be measured. So nothing is restarted between
turns: the dashboard is stopped as a process and its feed is closed, and both go on for the next turn. Four turns are a
block: alone, watched, watched, alone, and every second block the other way round; what drifts weighs on both alike.
"""

from __future__ import annotations

import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import NoReturn
from urllib.parse import urlsplit

from localllm.client import Client
from localllm.daemon.feed import Frame

SETTLE_S, TURN_S = 0.35, 1.1
"""Before a turn is measured, and how long."""
POLL_S = 0.04
"""The streams are read this rarely: whoever reads takes a core, too."""
FOREIGN, STOLEN = 0.06, 0.04
"""Shares of a core that others, or other machines on the same host, may take; where it was more, a block is dropped."""
NUM_DRAWS = 4000
UNTOLD = 3
"""The exit status where nothing can be told."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")
PROMPT = "Tell me a long story about a river, an old mill and the children who fish there in summer. "


def give_up(reason: str) -> NoReturn:
    """Nothing can be told."""
    print(reason, file=sys.stderr)
    raise SystemExit(UNTOLD)


# ---- streams that never end


class Crowd:
    """So many streams of one model; each begins anew when it is over, not all at once."""

    def __init__(self, url: str, model: str, num_streams: int, num_tokens: int) -> None:
        self._streams = [
            Stream(url, model, f"{number}. {PROMPT}", num_tokens, num_tokens * (number + 1) // num_streams)
            for number in range(num_streams)
        ]

    def num_tokens(self) -> int:
        """That have come until now, over all."""
        return sum(stream.take() for stream in self._streams)

    def edge(self) -> tuple[float, int]:
        """The next moment at which a step of the engine has arrived, and the tokens until then."""
        before, deadline = self.num_tokens(), time.monotonic() + 1.0
        now = before
        while now == before and time.monotonic() < deadline:
            time.sleep(0.001)
            now = self.num_tokens()
        time.sleep(0.001)
        return time.monotonic(), self.num_tokens()

    def listen(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(POLL_S, left))
            self.num_tokens()

    def close(self) -> None:
        for stream in self._streams:
            stream.close()


class Stream:
    """One request after another. Reads what has come without waiting for more, and understands nothing of it."""

    def __init__(self, url: str, model: str, prompt: str, num_tokens: int, num_first: int) -> None:
        self._address = urlsplit(url)
        self._wish = {"model": model, "ignore_eos": True, "temperature": 0, "stream": True,
                      "messages": [{"role": "user", "content": prompt}]}  # fmt: skip
        self._num_tokens = num_tokens
        self._seen, self._end = 0, b""
        self._socket = self._begin(max(1, num_first))

    def take(self) -> int:
        """Events since the first request began; a token is one."""
        while True:
            try:
                got = self._socket.recv(1 << 18)
            except BlockingIOError:
                return self._seen
            text = self._end + got
            if not self._end and b"HTTP/1.1 200" not in text[:16]:
                give_up(f"the daemon does not answer a stream: {text[:600]!r}")
            self._seen += text.count(b"\ndata: {")
            self._end = text[-7:]
            if b"data: [DONE]" in text or not got:
                self._socket.close()
                self._socket, self._end = self._begin(self._num_tokens), b""

    def close(self) -> None:
        self._socket.close()

    def _begin(self, num_tokens: int) -> socket.socket:
        body = json.dumps(self._wish | {"max_tokens": num_tokens}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self._address.netloc}\r\nContent-Length: {len(body)}\r\n"
        made = socket.create_connection((self._address.hostname or "", self._address.port or 80))
        made.sendall(head.encode() + b"Content-Type: application/json\r\nConnection: close\r\n\r\n" + body)
        made.setblocking(False)
        return made


# ---- whoever looks on


class Switched(Client):
    """A client whose live feed is there while it is switched on: nobody who reads it notices."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._is_on, self._told = threading.Event(), threading.Event()

    def switch(self, is_on: bool) -> None:
        """Returns when the feed has begun, or is closed."""
        if is_on == self._is_on.is_set():
            return
        self._told.clear()
        self._is_on.set() if is_on else self._is_on.clear()
        self._told.wait()

    def live(self) -> Iterator[Frame]:
        while self._is_on.wait():
            with closing(super().live()) as feed:
                for frame in feed:
                    if not self._is_on.is_set():
                        break
                    yield frame
                    self._told.set()
            self._told.set()


def obey(client: Switched) -> None:
    """Switches as the lines of standard input say, and answers each; ends with the input."""
    for line in sys.stdin:
        client.switch(line.strip() == "on")
        os.write(1, b"done\n")  # what is printed belongs to the application
    os._exit(0)


def read_only(client: Switched) -> None:
    """Reads the feed and draws nothing."""
    threading.Thread(target=obey, args=(client,), daemon=True).start()
    for _ in client.live():
        pass


class Watcher:
    """Another process that looks on while it is switched on, in a session of its own as from another terminal."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        self._tell("on")
        self._is_on = True

    def switch(self, is_on: bool) -> None:
        if is_on == self._is_on:
            return
        self._is_on = is_on
        if is_on:
            self._signal(signal.SIGCONT)
            self._tell("on")
        else:
            self._tell("off")
            self._signal(signal.SIGSTOP)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()

    def _signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def _tell(self, word: str) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        if not self.process.stdout.readline():
            give_up("the process that looks on has ended")


# ---- turns


@dataclass(frozen=True, slots=True)
class Turn:
    """`watcher`, `foreign` and `stolen` are shares of a core."""

    is_watched: bool
    tokens_per_s: float
    watcher: float
    foreign: float
    stolen: float

    @property
    def is_clean(self) -> bool:
        return self.foreign <= FOREIGN and self.stolen <= STOLEN


def blocks(crowd: Crowd, watcher: Watcher, seconds: float) -> Iterator[list[Turn]]:
    """As many whole ones as there is time for."""
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() + 4 * (TURN_S + SETTLE_S) < end:
        order = (False, True, True, False) if number % 2 == 0 else (True, False, False, True)
        yield [_turn(crowd, watcher, is_watched) for is_watched in order]
        number += 1


def _turn(crowd: Crowd, watcher: Watcher, is_watched: bool) -> Turn:
    watcher.switch(is_watched)
    crowd.listen(SETTLE_S)
    pid = watcher.process.pid
    busy = _Busy()
    start, before = crowd.edge()
    crowd.listen(TURN_S)
    end, after = crowd.edge()
    looked_on, foreign, stolen = busy.since(pid)
    span_s = end - start
    return Turn(is_watched, (after - before) / span_s, looked_on / span_s, foreign / span_s, stolen / span_s)


class _Busy:
    """The processor's time that every process has taken until now."""

    def __init__(self) -> None:
        self._stolen, self._taken = _now_taken()

    def since(self, watcher: int) -> tuple[float, float, float]:
        """Seconds since then: of the watcher, of processes that are none of ours, and of other machines."""
        stolen, taken = _now_taken()
        spent = {pid: busy - self._taken[pid][1] for pid, (_, busy) in taken.items() if pid in self._taken}
        ours = _family({pid: parent for pid, (parent, _) in taken.items()})
        foreign = sum(busy for pid, busy in spent.items() if pid not in ours)
        return spent.get(watcher, 0.0), foreign, stolen - self._stolen


def _now_taken() -> tuple[float, dict[int, tuple[int, float]]]:
    """Seconds stolen, and by process its parent and its own seconds."""
    taken = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        taken[int(path.parent.name)] = int(fields[1]), (int(fields[11]) + int(fields[12])) / TICKS_PER_S
    stolen = Path("/proc/stat").read_text().split("\n", 1)[0].split()[8]
    return int(stolen) / TICKS_PER_S, taken


def _family(parents: dict[int, int]) -> set[int]:
    """This process and all that descend from it."""
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


# ---- what they say


def cost_of(block: Sequence[Turn]) -> float:
    """The part of the throughput that was missing in the watched turns of a block."""
    rates = [[math.log(turn.tokens_per_s) for turn in block if turn.is_watched is kind] for kind in (False, True)]
    return 1 - math.exp(mean(rates[1]) - mean(rates[0]))


def middle(values: Sequence[float]) -> float:
    """The median of the means of all pairs: one wild block does not move it, and calm ones all count."""
    return median((one + two) / 2 for at, one in enumerate(values) for two in values[at:])


def interval(values: Sequence[float], of: Callable[[Sequence[float]], float] = middle) -> tuple[float, float]:
    """In which `of` lies, 95 to 5, as far as these values can say: blocks are drawn again and again."""
    rng = random.Random(1)
    drawn = sorted(of(rng.choices(values, k=len(values))) for _ in range(_num_draws(len(values))))
    return drawn[len(drawn) // 40], drawn[-1 - len(drawn) // 40]


def _num_draws(num_values: int) -> int:
    return max(400, min(NUM_DRAWS, 4_000_000 // max(1, num_values * num_values)))


def verdict(found: Sequence[Sequence[Turn]]) -> dict[str, float]:
    """Of all blocks. Costs are shares of the throughput, `cost_low` to `cost_high` the interval of 95 in 100."""
    clean = [block for block in found if all(turn.is_clean for turn in block)]
    if len(clean) < 8:
        taken = median(turn.foreign for block in found for turn in block) if found else 0.0
        give_up(f"only {len(clean)} of {len(found)} blocks were clean: others take {taken:.0%} of a core here, mostly")
    costs = [cost_of(block) for block in clean]
    low, high = interval(costs)
    turns = [turn for block in clean for turn in block]
    return {
        "alone_tokens_per_s": median(turn.tokens_per_s for turn in turns if not turn.is_watched),
        "watched_tokens_per_s": median(turn.tokens_per_s for turn in turns if turn.is_watched),
        "cost": middle(costs),
        "cost_low": low,
        "cost_high": high,
        "watcher_share_of_a_core": mean(turn.watcher for turn in turns if turn.is_watched),
        "blocks": len(clean),
        "dropped_blocks": len(found) - len(clean),
        "spread_of_blocks": _spread(costs),
    }


def _spread(values: Sequence[float]) -> float:
    """The half of the range in which the middle 68 of 100 lie."""
    ordered = sorted(values)
    cut = round(len(ordered) * 0.16)
    return (ordered[-1 - cut] - ordered[cut]) / 2


@contextmanager
def watching(command: Sequence[str]) -> Iterator[Watcher]:
    watcher = Watcher(command)
    try:
        yield watcher
    finally:
        watcher.close()
