"""What a scheduler does, without any I/O: the same operations written for each framework, in its own fastest way.

    python -m tests.benchmarks.operations FRAMEWORK [--loop LOOP] OPERATION COUNT

prints ``{"seconds": the CPU time, "count": COUNT}``. Each framework has a module with the same functions in the same
order, so that two of them can be laid side by side. ``COUNT`` is how often in all, whatever the number of tasks:

=========================  =============================================================================================
``spawn_join``             begin a task that ends at once, and wait for its end
``switch``                 give way to the other tasks; there are :data:`~.measuring.SWITCHERS`
``queue``                  send an item to another task by one queue, and get it back by another
``lock``                   have the lock that :data:`~.measuring.CONTENDERS` tasks want, and give way while having it
``sleeps``                 sleep for 1 to 10 ms; :data:`~.measuring.SLEEPERS` tasks do, for different times
``time_limits``            enter and leave a block with a time limit, around a call that does not suspend
``time_limited_switches``  the same around a call that gives way once
``spawn_cancel``           begin a task, let it come to a wait for ever, cancel it, and wait for its end
=========================  =============================================================================================
"""

OPERATIONS = (
    "spawn_join",
    "switch",
    "queue",
    "lock",
    "sleeps",
    "time_limits",
    "time_limited_switches",
    "spawn_cancel",
)

#: The module of each framework.
FRAMEWORKS = {
    "flowno": "flowno_",
    "asyncio": "asyncio_",
    "trio": "trio_",
    "curio": "curio_",
    "gevent": "gevent_",
}
