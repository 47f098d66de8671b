"""One thread for JAX: jobs wait in a queue, report events, and end when nobody listens any longer.

A job is a function of a `report`, which it calls with each event, a dictionary for the page. When
the page has moved on the job is cancelled: `report` raises `Cancelled`, and a job that has not
begun never does.
"""

import queue
import threading
import traceback
from collections import abc
from typing import Any

from diffjax.errors import UserError

Event = dict[str, Any]
Report = abc.Callable[[Event], None]
Work = abc.Callable[[Report], None]

MOST_WAITING = 16


class Cancelled(Exception):
    """Nobody waits for the job's result."""


class Job:
    """A piece of work, and the events that it has reported."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        self.begun = False

    def cancel(self) -> None:
        """Ends the job at its next report."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        """Whether it was cancelled."""
        return self._cancelled.is_set()

    def report(self, event: Event) -> None:
        """Hands an event to the reader of `events`; {} only asks whether there is one.

        Raises:
          Cancelled: nobody does.
        """
        if self.cancelled:
            raise Cancelled
        if event:
            self._events.put(event)

    def events(
        self, alive: abc.Callable[[], bool], *, seconds: float = 0.2
    ) -> abc.Generator[Event, None, None]:
        """The events, as they come; cancels the job where `alive` is no longer true.

        Args:
          alive: asked every `seconds`, and before each event is handed on.
          seconds: the time between.
        """
        try:
            while alive():
                try:
                    event = self._events.get(timeout=seconds)
                except queue.Empty:
                    continue
                if event is None:
                    return
                yield event
        finally:
            self.cancel()

    def run(self) -> None:
        """Does the work; an error becomes the last event."""
        self.begun = True
        try:
            if not self.cancelled:
                self._work(self.report)
        except Cancelled:
            pass
        except UserError as error:
            self._events.put({"error": str(error)})
        except (ValueError, TypeError, ZeroDivisionError, MemoryError) as error:
            self._events.put({"error": f"{type(error).__name__}: {_first_line(error)}"})
        except Exception as error:
            traceback.print_exc()
            self._events.put({"error": f"{type(error).__name__}: {_first_line(error)}"})
        finally:
            self._events.put(None)


class Worker:
    """The thread, and its queue of jobs."""

    def __init__(self) -> None:
        self._jobs: queue.Queue[Job] = queue.Queue()
        self._waiting: list[Job] = []
        self._lock, self._busy = threading.Lock(), False
        threading.Thread(target=self._loop, name="jax", daemon=True).start()

    def submit(self, work: Work) -> Job:
        """Queues a job.

        Raises:
          UserError: too many are waiting.
        """
        job = Job(work)
        with self._lock:
            self._waiting = [j for j in self._waiting if not (j.begun or j.cancelled)]
            if len(self._waiting) >= MOST_WAITING:
                raise UserError(f"{MOST_WAITING} requests are waiting already: try again later")
            self._waiting.append(job)
        self._jobs.put(job)
        return job

    def ahead_of(self, job: Job) -> int:
        """The number of jobs that wait to be done before a job."""
        with self._lock:
            live = [j for j in self._waiting if not (j.begun or j.cancelled) or j is job]
        return live.index(job) if job in live else 0

    @property
    def is_busy(self) -> bool:
        """Whether a job is being done."""
        return self._busy

    def _loop(self) -> None:
        while True:
            job = self._jobs.get()
            self._busy = True
            job.run()
            self._busy = False


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else "no more is known"
