"""When to stop and when to save, agreed by all processes: the same point of the run in each.

A point is a call of `tick`, which every process makes at the same places: between two dispatches, between two batches
of an evaluation. Whoever got a signal writes so into the key-value store; a thread in each process sees it, holds its
process's next tick, writes how many there were, reads the others' counts, and lets go: the point agreed on is the one
after the highest count, which nobody has passed. A tick is an addition otherwise: no device and no network has a part
in it, and while it is held (a few milliseconds, once) the devices work on what was dispatched before.

jax's own agreement (reached_preemption_sync_point) works alike, but knows SIGTERM only, takes that signal from Python,
and has no word for a checkpoint that is due by process 0's clock.
"""

import json
import threading

POLL_SECONDS = 0.2


class Agreement:
    """stop: this process's StopRequest. Use it in a `with`."""

    def __init__(self, peers, stop):
        self._peers, self._stop = peers, stop
        self._ticks = 0
        self._lock = threading.Lock()
        self._planned = {}  # tick -> ("stop" | "save", who asked)
        self._wants_save = False
        self._closed = threading.Event()
        self.stopping = False  # agreed: the same in every process at the same tick
        self.save_due = False
        self.reason = ""  # who asked to stop
        self._thread = threading.Thread(target=self._agree, name="agreement", daemon=True)
        if peers.count > 1:
            self._thread.start()

    def tick(self) -> bool:
        """Counts a point. Returns and sets `stopping`; sets `save_due`, which whoever saves clears."""
        if self._peers.count == 1:
            self.stopping = bool(self._stop)
            self.save_due = self.save_due or self._wants_save
            return self.stopping
        with self._lock:
            self._ticks += 1
            kind, who = self._planned.pop(self._ticks, (None, ""))
        if kind == "stop":
            self.stopping, self.reason = True, who
        elif kind == "save":
            self.save_due = True
        return self.stopping

    def ask_to_save(self) -> None:
        """Of process 0, whose clock decides. Once is enough until it is saved."""
        with self._lock:
            self._wants_save = not any(kind == "save" for kind, _ in self._planned.values())

    def saved(self) -> None:
        self.save_due = self._wants_save = False

    def __enter__(self) -> "Agreement":
        return self

    def __exit__(self, *error) -> None:
        """After the last tick: nobody waits for another count of ours."""
        if self._peers.count > 1:
            if error[0] is None:
                self._peers.publish(f"agree/closed/{self._peers.index}", "")
            self._closed.set()

    def _agree(self) -> None:
        try:
            self._answer_wishes()
        except RuntimeError:  # the coordination service is gone; `Peers` says so and ends the process
            pass

    def _answer_wishes(self) -> None:
        number, asked = 0, set()
        while not self._closed.wait(POLL_SECONDS):
            for kind in self._wishes() - asked:
                asked.add(kind)
                wish = json.dumps([kind, f"{self._stop.name} at {self._peers.name(self._peers.index)}"])
                self._peers.publish_first(f"agree/asked/{number}", wish)
                break
            wish = self._peers.read(f"agree/asked/{number}")
            if wish is not None:
                kind, who = json.loads(wish)
                self._plan(number, kind, who)
                number, asked = number + 1, (asked if kind == "stop" else set())

    def _wishes(self) -> set[str]:
        return ({"stop"} if self._stop else set()) | ({"save"} if self._wants_save else set())

    def _plan(self, number: int, kind: str, who: str) -> None:
        peers, folder = self._peers, f"agree/at/{number}"
        with self._lock:
            peers.publish(f"{folder}/{peers.index}", str(self._ticks))
            while len(counts := peers.read_all(folder)) < peers.count:
                if peers.read_all("agree/closed"):
                    return  # that process has no tick left: the run is as good as over
                if self._closed.wait(0.01):
                    return
            self._planned[max(int(n) for n in counts.values()) + 1] = (kind, who)
            if kind == "save":
                self._wants_save = False
