"""What memory there is and who takes it, asked of the system at most once a second."""

import time

from localllm.daemon.feed import Machine

FRESH_S = 1.0


class Memory:
    """Bytes. Whoever asks more often gets the same answer again."""

    def __init__(self) -> None:
        self._known: dict[int | None, tuple[float, int]] = {}
        self._machine = (0.0, Machine())

    def machine(self) -> Machine:
        """Of the whole machine, and of this process."""
        import psutil  # deferred: 100 ms that a daemon need not pay before somebody looks

        asked, known = self._machine
        if time.monotonic() - asked > FRESH_S or not known.total_bytes:
            system = psutil.virtual_memory()
            known = Machine(int(system.available), int(system.total), self.taken_by(None))
            self._machine = time.monotonic(), known
        return known

    def taken_by(self, pid: int | None) -> int:
        """Resident memory of a process, None: of this one; 0 when it is gone."""
        import psutil  # as above

        asked, known = self._known.get(pid, (0.0, -1))
        if known < 0 or time.monotonic() - asked > FRESH_S:
            try:
                known = int(psutil.Process(pid).memory_info().rss)
            except psutil.Error:
                known = 0
            self._known = {each: when for each, when in self._known.items() if time.monotonic() - when[0] < 60}
            self._known[pid] = time.monotonic(), known
        return known
