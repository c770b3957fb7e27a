"""Runs the programs that measure, each in a process of its own, and collects what they print.

In each round the contenders take turns, and each round begins with another of them; so none is always measured behind
the same one, or when the machine has warmed up. The measuring processes run on one processor, the clients of the
network cases on another, where the system can say so.
"""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any

from tests.benchmarks import load
from tests.benchmarks.cases import Case
from tests.benchmarks.contenders import CONTENDERS, Contender

__all__ = ["Failed", "certificate", "environment", "measure", "processors", "run"]

#: How long a measurement may take beyond the seconds that it is asked for; making 10,000 connections is slow.
PATIENCE = 120.0


class Failed(Exception):
    """A measurement that came to nothing; says why."""


def run(
    cases: Sequence[Case],
    contenders: Sequence[Contender],
    rounds: int,
    scale: float = 1.0,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure all the cases for all the contenders.

    Args:
        cases: What.
        contenders: For whom.
        rounds: How often.
        scale: How long, where 1 is about a second for each measurement.
        report: Called with a line before each round of a case.

    Returns:
        What goes into the JSON: ``environment``, ``measurements``, one for each case, contender and round with the
        figures, and ``missing``, for each case and contender that could not be measured, with the reason.
    """
    cores = processors()
    document: dict[str, Any] = {"environment": environment(cores), "scale": scale, "measurements": [], "missing": []}
    with certificate() as (pem, no_certificate):
        for _, group in groupby(cases, lambda case: case.group or case.key):
            together = list(group)
            able: list[tuple[Contender, Case]] = []
            # By contender, so that cases that are compared with each other are measured one right after the other.
            for one in contenders:
                for case in together:
                    if one.key not in case.contenders:
                        continue
                    reason = case.missing(one) or (no_certificate if case.needs_certificate else "")
                    if reason:
                        document["missing"].append({"case": case.key, "contender": one.key, "reason": reason})
                    else:
                        able.append((one, case))
            for number in range(rounds):
                report(f"{', '.join(case.key for case in together)}: round {number + 1} of {rounds}")
                for one, case in _rotated(able, number):
                    try:
                        figures = measure(case, one, scale, pem, cores)
                    except Failed as failure:
                        document["missing"].append({"case": case.key, "contender": one.key, "reason": str(failure)})
                        able.remove((one, case))
                    else:
                        document["measurements"].append(
                            {"case": case.key, "contender": one.key, "round": number, **figures}
                        )
    return document


def _rotated(pairs: list[tuple[Contender, Case]], number: int) -> list[tuple[Contender, Case]]:
    """The same, beginning with another contender in each round."""
    keys = list(dict.fromkeys(one.key for one, _ in pairs))
    first = number * max(len(keys) // 3, 1) % max(len(keys), 1)
    order = {key: index for index, key in enumerate(keys[first:] + keys[:first])}
    return sorted(pairs, key=lambda pair: order[pair[0].key])


def measure(
    case: Case, contender: Contender, scale: float, pem: str = "", cores: tuple[int, int] | None = None
) -> dict[str, float]:
    """One measurement.

    Args:
        case: What.
        contender: For whom.
        scale: How long, in seconds or in parts of the count of the case.
        pem: The file of :func:`certificate`, for TLS.
        cores: The processors of what is measured and of its clients.

    Returns:
        What the program has printed.

    Raises:
        Failed: It has ended otherwise.
    """
    command = case.command(contender, scale)
    if case.needs_certificate:
        command += ["--certificate", pem]
    if cores and case.program == "load":
        command += ["--cores", ",".join(map(str, cores))]
    process = subprocess.Popen(
        [sys.executable, "-m", f"tests.benchmarks.{command[0]}", *command[1:]],
        cwd=load.ROOT,
        env=load.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    with process:
        if cores and case.program not in {"load", "latency"}:  # these have clients, and choose by themselves
            os.sched_setaffinity(process.pid, {cores[0]})
        try:
            output, errors = process.communicate(timeout=PATIENCE + scale)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Failed(f"it was not done after {PATIENCE + scale:g} seconds") from None
    if process.returncode:
        raise Failed(_reason(errors) or f"exit status {process.returncode}")
    figures: dict[str, float] = json.loads(output.splitlines()[-1])
    return figures


def _reason(errors: str) -> str:
    """The last words of a program, and of the one that it had started, without the traceback."""
    return "; ".join(re.findall(r"^(?!Traceback|\s).+", errors, re.MULTILINE)[-2:])


def processors() -> tuple[int, int] | None:
    """Two of the processors that this may run on, as far from each other as can be; None where there is no choice."""
    if not hasattr(os, "sched_getaffinity"):
        return None
    cores = sorted(os.sched_getaffinity(0))
    return (cores[-1], cores[0]) if len(cores) > 1 else None


@contextmanager
def certificate() -> Iterator[tuple[str, str]]:
    """A file with the key, the certificate and its authority, for "localhost"; or why there is none."""
    try:
        import trustme
    except ImportError as error:
        yield "", f"no certificate: {error}"
        return
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "localhost.pem")
        parts = [issued.private_key_pem, *issued.cert_chain_pems, authority.cert_pem]
        path.write_bytes(b"".join(part.bytes() for part in parts))
        yield str(path), ""


def environment(cores: tuple[int, int] | None) -> dict[str, Any]:
    """On what all this was measured."""
    packages = sorted({"flowno", "trustme"} | {one.module for one in CONTENDERS if one.module})
    return {
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "compiler": platform.python_compiler(),
        "system": platform.platform(),
        "processor": _processor(),
        "processors": os.cpu_count(),
        "pinned": f"the server to {cores[0]}, the load to {cores[1]}" if cores else "no",
        "packages": {name: version for name in packages if (version := _version(name))},
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
