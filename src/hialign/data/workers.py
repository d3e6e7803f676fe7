"""The processes that make batches: which signals they heed, and what their death is called."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any


class WorkerDied(ValueError):
    """A process that made batches has ended; the batches it was at are lost, and the run cannot go on."""


@contextmanager
def watched(workers: Sequence[BaseProcess], stream: str) -> Iterator[None]:
    """Inside, the death of a worker raises WorkerDied at once, where otherwise one could wait for it for ever."""

    def check(*_signal: object) -> None:
        if gone := [worker for worker in workers if not worker.is_alive()]:
            raise _died(gone[0], len(workers), stream)

    with _on_child_s_end(check):
        check()  # of those that ended before
        try:
            yield
        except WorkerDied:
            raise
        except Exception as error:
            if isinstance(error, ConnectionError | EOFError):  # its socket closes a moment before a process has ended
                wait([worker.sentinel for worker in workers], timeout=5)
            check()  # torch's own words for it, or a connection that broke, come of the same death
            raise


@contextmanager
def quiet_start() -> Iterator[None]:
    """Inside, a DataLoader may start workers; its handler, which raises anywhere in a training step, is put away."""
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        if _in_main_thread():
            signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Inside, a first Ctrl-C waits for the end, and a second one is obeyed at once.

    An interrupt in the midst of a queue's put can leave its lock shut, and ending the workers would then wait for ever.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is None or not _in_main_thread():
        yield
        return
    held: list[int] = []

    def obey() -> None:
        signal.signal(signal.SIGINT, before)
        while held:
            signal.raise_signal(held.pop())

    def hold(signum: int, _frame: object) -> None:
        held.append(signum)
        if len(held) > 1:
            obey()

    signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        obey()


def ignore_signals(_worker: int) -> None:
    """Leave signals to the main process: schedulers send theirs, and terminals Ctrl-C, to the workers as well.

    A worker that died of one would end the training before it has saved its checkpoint.
    """
    for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigtimedwait"):  # macOS has none; there a SIGTERM still ends a worker
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey_parent, args=[os.getppid()], daemon=True).start()


def _obey_parent(parent: int) -> None:
    """End this worker on the SIGTERM by which the main process ends its children when it exits, or when it is gone.

    A killed one sends nothing, and a worker that was waiting for the rest of a large message would wait for ever.
    """
    while os.getppid() == parent:
        received = signal.sigtimedwait({signal.SIGTERM}, 2)
        if received is not None and received.si_pid == parent:
            break
    os._exit(0)


@contextmanager
def _on_child_s_end(check: Callable[..., None]) -> Iterator[None]:
    if not _in_main_thread():  # Python handles signals there; elsewhere torch looks every few seconds
        yield
        return
    before: Any = signal.signal(signal.SIGCHLD, check)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before if before is not None else signal.SIG_DFL)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


def _died(worker: BaseProcess, count: int, stream: str) -> WorkerDied:
    code = worker.exitcode or 0
    if code == -signal.SIGKILL:
        how = "was killed (SIGKILL), as happens where memory runs out"
        fix = "give the run more memory, or set fewer trainer.workers; with 0 the main process reads by itself"
    else:
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        fix = "trainer.workers=0 reads in the main process, where the cause can be seen"
    return WorkerDied(f"stream {stream}: one of its {count} data workers (pid {worker.pid}) {how}; {fix}")
