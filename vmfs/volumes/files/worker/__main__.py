# SPDX-License-Identifier: MIT
"""A worker: reads one file system for the client at the other end of its socket.

    __main__.py SOCKET MEMORY TYPE SIZE MEMORY-LIMIT CPU-LIMIT

SOCKET and MEMORY are descriptors, TYPE the file system's, SIZE the volume's and MEMORY-LIMIT bytes, CPU-LIMIT
seconds.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path


def _package() -> str:
    """Makes a package of this folder, whose parents are not to be imported: they belong to another program.
    Returns its name."""
    name = "guest_worker"
    folder = Path(__file__).resolve().parent
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None  # noqa: S101
    assert spec.loader is not None  # noqa: S101
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return name


if __name__ == "__main__":
    program = importlib.import_module(f"{_package()}.program")
    program.main(sys.argv[1:])
