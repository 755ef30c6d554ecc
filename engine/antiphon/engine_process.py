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
LONGEST_PAUSE = 10.0
"""Seconds between restarts of an engine that keeps dying before it is ready; the first restart is immediate."""


class ProcessBackend:
    """Runs an engine in a spawned process; restarts it when it dies, unless its model cannot be loaded at all.

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
        pause = 0.0
        while not self._closing.wait(pause):
            process, connection = self._spawn()
            ready, final = self._read(connection, process, deliver)
            self._connection = None
            connection.close()
            process.join()
            if self._closing.is_set() or final:
                return
            pause = 0.0 if ready else min(LONGEST_PAUSE, 2 * pause + 0.5)
            logger.error("the engine process ended with code %s; restarting it in %.1f s", process.exitcode, pause)

    def _spawn(self) -> tuple[Any, Connection]:
        context = multiprocessing.get_context("spawn")
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
                process.join(1.0)
                deliver([Died(f"the engine process ended with code {process.exitcode}")])
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


def run_engine(spec: EngineSpec, connection: Connection, step_timeout: float, log_level: int) -> None:
    """The process: load, then work until told to stop or until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides what it means
    logging.basicConfig(level=log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    def deliver(events: list[Event]) -> None:
        if events:
            connection.send_bytes(_pickled(events))

    try:
        worker = EngineWorker(spec.build(), deliver)
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
