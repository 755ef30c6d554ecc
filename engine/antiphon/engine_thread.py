"""An engine in a thread of this process."""

from __future__ import annotations

import logging
import threading
import time

from .engine_messages import Command, Deliver, Died, Shutdown
from .engine_spec import EngineSpec
from .engine_worker import EngineWorker
from .errors import AntiphonError

logger = logging.getLogger(__name__)


class ThreadBackend:
    """Builds an engine in a thread and runs it there; one that fails is built anew.

    Costs no copies and shares the interpreter's lock with the caller; for a server use ``ProcessBackend``.
    """

    def __init__(self, spec: EngineSpec):
        self.spec = spec
        self._worker: EngineWorker | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()

    def start(self, deliver: Deliver) -> None:
        """Begin to load; ``deliver`` gets every event, in the engine's thread."""
        self._thread = threading.Thread(target=self._run, args=(deliver,), name="antiphon-engine", daemon=True)
        self._thread.start()

    def send(self, command: Command) -> None:
        """Hand over a command; dropped while there is no engine, which ``Died`` or ``Ready`` says."""
        worker = self._worker
        if worker is not None:
            worker.send(command)

    def close(self, timeout: float = 10.0) -> None:
        """End the engine and its thread."""
        self._closing.set()
        self.send(Shutdown())
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self, deliver: Deliver) -> None:
        while not self._closing.is_set():
            start = time.monotonic()
            try:
                self._worker = EngineWorker(self.spec.build(), deliver)
                self._worker.load_seconds = time.monotonic() - start
            except AntiphonError as error:
                deliver([Died(str(error), final=True)])
                return
            except Exception as error:
                logger.exception("the engine could not be built")
                deliver([Died(f"the engine could not be built: {error}", final=True)])
                return
            try:
                if not self._closing.is_set():
                    self._worker.run()
            except Exception as error:
                logger.exception("the engine failed and is built anew")
                self._worker = None
                deliver([Died(f"the engine failed: {error}")])
