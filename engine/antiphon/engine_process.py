"""An engine in a process of its own, watched and restarted.

Protocol: pickled frozen dataclasses of ``engine_messages`` over one pipe, one command or one list of events per message.
The end of either side closes the pipe, so each notices the other's death at once.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import queue
import signal
import threading
import time
from multiprocessing.connection import Connection, wait
from typing import Any

from .engine_messages import Command, Deliver, Died, Event, Ready, Shutdown
from .engine_spec import EngineSpec
from .engine_worker import EngineWorker
from .errors import AntiphonError

logger = logging.getLogger(__name__)

HUNG = 70
"""Exit code of an engine that ended itself because a step hung."""
PRELOAD = ("antiphon.engine_process",)
"""What a process has imported before it is forked from the fork server: all that an engine needs, PyTorch included. Nothing of
it may start a thread or touch a GPU at import."""
FIRST_ATTEMPTS = 3
"""Processes of an engine that has never been ready; one that has been is started again for ever."""
LONGEST_PAUSE = 10.0
"""Seconds between restarts of an engine that keeps dying before it is ready; the first restart is immediate."""


class ProcessBackend:
    """Runs an engine in a process of its own; restarts it when it dies, unless its model cannot be loaded at all.

    Where the system can fork, the process is forked from a server that has imported everything and nothing else, so that a
    restart takes as long as loading the model does.

    Args:
        step_timeout: an engine that hangs in one step for so many seconds counts as dead.
    """

    def __init__(self, spec: EngineSpec, step_timeout: float = 300.0):
        self.spec, self.step_timeout = spec, step_timeout
        self._outbox: queue.SimpleQueue = queue.SimpleQueue()
        self._process: Any = None
        self._threads: list[threading.Thread] = []
        self._connection: Connection | None = None
        self._closing = threading.Event()

    @property
    def pid(self) -> int | None:
        """The process that runs the engine now; None while there is none."""
        process = self._process
        return None if process is None else process.pid

    def start(self, deliver: Deliver) -> None:
        """Begin to load; ``deliver`` gets every event, in a thread of this process."""
        for target, arguments in ((self._supervise, (deliver,)), (self._write, ())):
            thread = threading.Thread(target=target, args=arguments, name=f"antiphon{target.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def send(self, command: Command) -> None:
        """Hand over a command; returns at once. Dropped if the engine dies before it reads it."""
        self._outbox.put(command)

    def close(self, timeout: float = 10.0) -> None:
        """End the process, gently first."""
        self._closing.set()
        self.send(Shutdown())
        self._outbox.put(None)
        process = self._process
        if process is not None:
            process.join(timeout)
            if process.is_alive():
                process.kill()
        for thread in self._threads:
            thread.join(timeout)

    def _supervise(self, deliver: Deliver) -> None:
        """Spawn, read events until the process ends, and again."""
        pause, failures, ever_ready = 0.0, 0, False
        while not self._closing.wait(pause):
            ready, final, reason = self._run_once(deliver)
            ever_ready = ever_ready or ready
            failures = 0 if ready else failures + 1
            if self._closing.is_set() or final:
                return
            final = not ever_ready and failures >= FIRST_ATTEMPTS
            deliver([Died(reason, final)])
            if final:
                return
            pause = 0.0 if ready else min(LONGEST_PAUSE, 2 * pause + 0.5)
            logger.error("%s; restarting it in %.1f s", reason, pause)

    def _run_once(self, deliver: Deliver) -> tuple[bool, bool, str]:
        """One process from start to end: was it ever ready, has it said itself that its end is final, how did it end?"""
        try:
            process, connection = self._spawn()
        except RuntimeError as error:  # a main module that starts processes when it is imported; no attempt can succeed
            deliver([Died(f"no process could be started for the engine: {error}", final=True)])
            return False, True, ""
        except OSError as error:
            return False, False, f"no process could be started for the engine: {error}"
        ready, final = self._read(connection, process, deliver)
        self._connection = None
        connection.close()
        process.join(1.0)
        if process.is_alive():
            process.kill()  # it has said its last word, and callers wait to hear of its end
            process.join()
        return ready, final, f"the engine process ended with code {process.exitcode}"

    def _spawn(self) -> tuple[Any, Connection]:
        context = _context()
        connection, theirs = context.Pipe()
        arguments = (self.spec, theirs, self.step_timeout, logging.getLogger("antiphon").getEffectiveLevel())
        process = context.Process(target=run_engine, args=arguments, name="antiphon-engine", daemon=True)
        process.start()
        theirs.close()
        self._process, self._connection = process, connection
        return process, connection

    def _read(self, connection: Connection, process: Any, deliver: Deliver) -> tuple[bool, bool]:
        """Deliver until the end of the process; was it ever ready, and is its end final?"""
        ready = False
        while True:
            wait([connection, process.sentinel])
            try:
                events = _receive(connection) if connection.poll() or process.is_alive() else None
            except (EOFError, OSError):
                events = None
            if events is None:
                return ready, False
            deliver(events)
            ready = ready or any(isinstance(event, Ready) for event in events)
            if any(isinstance(event, Died) and event.final for event in events):
                return ready, True

    def _write(self) -> None:
        """Commands to whichever process is there; pickling large recordings must not hold up the caller."""
        while (command := self._outbox.get()) is not None:
            connection = self._connection
            try:
                if connection is not None:
                    connection.send_bytes(_pickled(command))
            except OSError:
                logger.debug("a command was lost with the engine process")


def _context() -> Any:
    """How to start a process: forked from a server with our imports, or spawned."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    return context


def run_engine(spec: EngineSpec, connection: Connection, step_timeout: float, log_level: int) -> None:
    """The process: load, then work until told to stop or until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    logging.basicConfig(level=log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    def deliver(events: list[Event]) -> None:
        if events:
            connection.send_bytes(_pickled(events))

    start = time.monotonic()
    try:
        worker = EngineWorker(spec.build(), deliver)
        worker.load_seconds = time.monotonic() - start
    except AntiphonError as error:
        deliver([Died(str(error), final=True)])
        return
    threading.Thread(target=_read_commands, args=(connection, worker), daemon=True).start()
    threading.Thread(target=_watch, args=(worker, step_timeout), daemon=True).start()
    try:
        worker.run()
    except (BrokenPipeError, ConnectionResetError):
        logger.info("the parent process is gone")


def _read_commands(connection: Connection, worker: EngineWorker) -> None:
    try:
        while True:
            worker.send(_receive(connection))
    except (EOFError, OSError):
        worker.send(Shutdown())
        time.sleep(2.0)
        os._exit(0)  # the parent is gone, and a step that hangs must not keep the process


def _watch(worker: EngineWorker, step_timeout: float) -> None:
    """End the process if a step hangs; the parent starts another."""
    while worker.seconds_in_step < step_timeout:
        time.sleep(min(1.0, step_timeout / 4))
    logger.critical("a step has taken over %g s; the process ends itself", step_timeout)
    os._exit(HUNG)


def _pickled(message: Any) -> bytes:
    return pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)


def _receive(connection: Connection) -> Any:
    return pickle.loads(connection.recv_bytes())
