"""One measurement of one operation; see the package."""

import argparse
import importlib
import json

from tests.benchmarks.operations import FRAMEWORKS, OPERATIONS


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.operations", description=__doc__)
    parser.add_argument("framework", choices=FRAMEWORKS)
    parser.add_argument("--loop", default="", help="for flowno the selector; for asyncio, uvloop")
    parser.add_argument("operation", choices=OPERATIONS)
    parser.add_argument("count", type=int)
    options = parser.parse_args()
    module = importlib.import_module(f"tests.benchmarks.operations.{FRAMEWORKS[options.framework]}")
    seconds = module.run(getattr(module, options.operation), options.count, options.loop)
    print(json.dumps({"seconds": seconds, "count": options.count}))


if __name__ == "__main__":
    main()
