"""The command line; see the package."""

import argparse
import json
import sys
from pathlib import Path

from tests.benchmarks import cases, contenders, report, runner
from tests.benchmarks.load import allow_open_files

#: How long a measurement takes, as a part of what it takes else, and how often it is made, with --quick.
QUICK_SCALE = 0.2
QUICK_ROUNDS = 3
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Compare flowno with its peers, and say for each target whether it is met.",
    )
    parser.add_argument("--cases", default="", metavar="KEYS", help="some only, as in echo-1KiB-*,churn")
    parser.add_argument("--contenders", default="", metavar="KEYS", help="some only, as in flowno,uvloop*,bare")
    parser.add_argument("--list", action="store_true", help="print the keys of cases and contenders, and stop")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"how often; {ROUNDS} by default")
    parser.add_argument("--quick", action="store_true", help="measure a fifth as long, three times")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all the figures")
    parser.add_argument("--from", type=Path, metavar="FILE", dest="source", help="measure nothing; read such a file")
    parser.add_argument("--format", choices=report.FORMATS, default="text", help="of the tables")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="draw an SVG for each case; needs matplotlib")
    options = parser.parse_args()
    try:
        chosen_cases = cases.chosen(_names(options.cases))
        chosen_contenders = contenders.chosen(_names(options.contenders))
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        _list(chosen_cases, chosen_contenders)
        return
    if options.source:
        document = json.loads(options.source.read_text("utf-8"))
    else:
        allow_open_files()
        rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
        scale = QUICK_SCALE if options.quick else 1.0
        document = runner.run(chosen_cases, chosen_contenders, rounds, scale, lambda line: print(line, file=sys.stderr))
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
    results = report.Results(document)
    for table in report.tables(results):
        print(report.FORMATS[options.format](table))
    if options.plots:
        from tests.benchmarks.plots import draw

        for path in draw(results, options.plots):
            print(path, file=sys.stderr)


def _names(given: str) -> list[str]:
    return [name.strip() for name in given.split(",") if name.strip()]


def _list(some_cases: tuple[cases.Case, ...], some_contenders: tuple[contenders.Contender, ...]) -> None:
    print("cases:")
    for case in some_cases:
        print(f"  {case.key:22} {case.title}")
    print("contenders:")
    for one in some_contenders:
        reason = one.missing()
        print(f"  {one.key:22} {one.label}{f' ({reason})' if reason else ''}")


if __name__ == "__main__":
    main()
