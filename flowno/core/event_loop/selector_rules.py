"""What a selector promises: the rules of :class:`~flowno.core.event_loop.backend.Selector` as a table, by name.

Whoever finds that a selector breaks one says which by its name: the decorator ``check``, which looks at each call of a
program, and the conformance kit of ``flowno.testing``, which makes the calls.
"""

from typing import Final

from .errors import FlownoError

__all__ = ["CALL_RULES", "RULES", "ProtocolViolation"]

#: The rules that a call and its outcome are enough to judge by, whatever the program does that makes it.
CALL_RULES: Final[dict[str, str]] = {
    "mask": "register and modify raise ValueError where events are no mask of the two, and change nothing",
    "descriptor": "register raises ValueError for what is no file descriptor and has none",
    "registered": "register raises KeyError where the fd is registered",
    "unknown": "modify and unregister raise KeyError where the fd is not registered",
    "false-alarm": "register, modify and unregister raise no KeyError for any other reason",
    "key": "register, modify and unregister return the SelectorKey of the registration",
    "failed-register": "after a register that failed the fd is not registered, and the others are as before",
    "failed-modify": "after a modify that the system refused the fd is not registered",
    "unregister": "unregister takes out what is registered, also a closed fd, and raises no OSError or ValueError",
    "nan": "select raises ValueError for a timeout that is not a number",
    "select-raises": "select raises no error because of a closed fd, or of a timeout that is a number",
    "result": "select returns a list of pairs of a SelectorKey and events",
    "reported-key": "select returns the keys of what is registered now",
    "reported-events": "what is reported for a key is some of the events that it is registered for, and not none",
    "reported-twice": "no event of an fd is reported twice in one result",
    "early": "select does not return with nothing to report before its time has passed",
}

#: Every rule. The others take sockets whose state is known.
RULES: Final[dict[str, str]] = CALL_RULES | {
    "readiness": "select reports what is ready for the events that it is registered for, as soon as it is",
    "level": "what is ready is reported by every select until it is ready no more",
    "all-at-once": "one result of select has everything that is ready",
    "not-ready": "what is not ready is not reported time and again",
    "hang-up": "an error, a hang-up and an end of file are reported as the events that were registered",
    "no-wait": "select does not wait where the timeout is 0 or less, or where something is ready",
    "late": "select waits no longer than it was asked to, but for what its clock cannot tell apart",
    "wake": "a wait ends when something becomes ready, whoever has made it so",
    "signals": "an error that a signal handler raises leaves select, and the selector works as before",
    "refusal": "register refuses at once what the selector cannot hold, and select serves the others",
    "reuse": "a number that was closed and belongs to another file is that file's, for whoever registers it",
    "duplicate": "what was unregistered is not in the way because a duplicate of its fd is still open",
    "claims": "what the capabilities of a selector say of it is so",
    "independence": "a selector knows nothing of the others, and may be used in any one thread",
    "fork": "a forked child and its parent have the same registrations, and change their own alone",
    "leak": "no call leaves more descriptors open than the selector and its registrations need",
    "close": "close gives back what the selector holds of the system, and leaves the registered files open",
    "mapping": "get_key and get_map, where there are any, know what is registered, as the standard library's do",
    "end": "every call comes to its end, and leaves the interpreter running",
}


class ProtocolViolation(FlownoError, RuntimeError):
    """A selector does not do what :class:`flowno.Selector` promises.

    Args:
        rule: Which rule it breaks.
        message: What it was asked, and what it did.
    """

    def __init__(self, rule: str, message: str) -> None:
        super().__init__(rule, message)
        self.rule = rule

    def __str__(self) -> str:
        return str(self.args[1])
