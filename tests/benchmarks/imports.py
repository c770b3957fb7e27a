"""How long it takes to import a module, in an interpreter that has imported nothing yet.

    python -m tests.benchmarks.imports MODULE

prints ``{"seconds": the CPU time, "count": 1}``: the least of several interpreters. They are isolated (``-I -S``), so
that neither the environment nor what ``site`` imports is a part of it, and the module's folder comes last in their
path, as installed packages do. What is compiled is compiled before.
"""

import argparse
import importlib.util
import json
import os
import subprocess
import sys

__all__ = ["import_seconds"]

INTERPRETERS = 10

PROGRAM = """
import sys, time
module, folder = sys.argv[1:]
sys.path.append(folder)
begun = time.process_time()
__import__(module)
print(time.process_time() - begun)
"""


def import_seconds(module: str, interpreters: int = INTERPRETERS) -> float:
    """The CPU time that an import takes, the least that so many interpreters needed.

    Raises:
        ModuleNotFoundError: There is no such module.
    """
    folder = folder_of(module)
    seconds = [_once(module, folder) for _ in range(1 + interpreters)]
    return min(seconds[1:])  # the first one may have compiled it


def folder_of(module: str) -> str:
    """The entry of ``sys.path`` that a module is found in."""
    spec = importlib.util.find_spec(module.partition(".")[0])
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)
    folder = os.path.dirname(spec.origin)
    return folder if spec.submodule_search_locations is None else os.path.dirname(folder)


def _once(module: str, folder: str) -> float:
    command = [sys.executable, "-I", "-S", "-c", PROGRAM, module, folder]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.imports", description=__doc__)
    parser.add_argument("module")
    parser.add_argument("--interpreters", type=int, default=INTERPRETERS)
    options = parser.parse_args()
    print(json.dumps({"seconds": import_seconds(options.module, options.interpreters), "count": 1}))


if __name__ == "__main__":
    main()
