"""Asks a trace what its tasks have waited for longest: ``python longest_waits.py trace.json``."""

import json
import sys

with open(sys.argv[1]) as file:
    events = json.load(file)["traceEvents"]
