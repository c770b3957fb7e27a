"""What the tasks in a trace have waited for, half a second or longer: ``python longest_waits.py trace.json``."""

import json
import sys

with open(sys.argv[1]) as file:
    events = json.load(file)["traceEvents"]


def lane(event):
    return event["pid"], event["tid"]


names = {lane(event): event["args"]["name"] for event in events if event.get("name") == "thread_name"}
waits = [event for event in events if event.get("cat") == "wait" and event["dur"] >= 500_000]
for wait in sorted(waits, key=lane):
    print(f"{names[lane(wait)]} {wait['name']}: {wait['dur'] / 1e6:.1f} s, {wait['args']['for']}")
