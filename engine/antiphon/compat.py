"""Run a script written for the official package, unmodified: ``python -m antiphon.compat SCRIPT.py [arguments…]``.

While the script runs, ``from kimia_infer.api.kimia import KimiAudio`` gives our engine under the official signature. The
modules exist only inside :func:`official_package`; an installed ``kimia_infer`` is hidden for that time and left alone. Of the
official package only ``kimia_infer.api.kimia`` is provided; importing anything else from it is an ImportError that says so.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from .errors import AntiphonError

PACKAGE = "kimia_infer"
MODULES = (PACKAGE, f"{PACKAGE}.api", f"{PACKAGE}.api.kimia")


class _OfficialFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Provides :data:`MODULES` and refuses every other name below ``kimia_infer``."""

    def find_spec(self, name: str, path=None, target=None):
        if name in MODULES:
            return importlib.machinery.ModuleSpec(name, self, is_package=name != MODULES[-1])
        if name.split(".")[0] == PACKAGE:
            raise ImportError(
                f"{name}: antiphon.compat provides only kimia_infer.api.kimia.KimiAudio; use the antiphon package for the rest",
                name=name,
            )
        return None

    def create_module(self, spec):
        return None

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == MODULES[-1]:
            module.KimiAudio = _official_class()


def _official_class() -> type:
    """``KimiAudio`` whose unseeded draws follow PyTorch's global generator, as the official ones do."""
    import torch

    import antiphon

    class KimiAudio(antiphon.KimiAudio):
        """The official class: ``torch.manual_seed`` decides what is drawn (our draws, not the official ones)."""

        def generate(self, *args, seed: int | None = None, **kwargs):
            if seed is None:
                seed = int(torch.randint(2**62, ()))
            return super().generate(*args, seed=seed, **kwargs)

    return KimiAudio


@contextmanager
def official_package() -> Iterator[None]:
    """``kimia_infer`` is importable inside the ``with`` block and backed by Antiphon."""
    hidden = _take_modules()
    finder = _OfficialFinder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        _take_modules()
        sys.modules.update(hidden)


def _take_modules() -> dict[str, ModuleType]:
    names = [name for name in sys.modules if name.split(".")[0] == PACKAGE]
    return {name: sys.modules.pop(name) for name in names}


def run_script(path: str, arguments: Sequence[str] = ()) -> dict:
    """Run a script as ``__main__`` with ``sys.argv`` and ``sys.path`` as ``python path arguments…`` sets them.

    Returns the script's globals.
    """
    argv, search = sys.argv, sys.path[:]
    sys.argv = [path, *arguments]
    sys.path.insert(0, str(Path(path).resolve().parent))
    try:
        with official_package():
            return runpy.run_path(path, run_name="__main__")
    finally:
        sys.argv, sys.path[:] = argv, search


def main(argv: Sequence[str] | None = None) -> int:
    """The command; exit code 2 for a wrong call or a mistake that the engine reports."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__.splitlines()[0], file=sys.stderr)
        return 0 if arguments else 2
    if not Path(arguments[0]).is_file():
        print(f"antiphon: error: {arguments[0]}: no such script", file=sys.stderr)
        return 2
    try:
        run_script(arguments[0], arguments[1:])
    except AntiphonError as error:
        print(f"antiphon: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
