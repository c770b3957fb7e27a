"""Random schedules, the same for the same seed: many tasks that do what comes to their mind, and are cancelled.

What they use is compared with a model: a few lists that say, without any waiting, what must come out.
"""

import random
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import flowno
from flowno import TaskCancelled, TaskHandle, sleep, spawn

__all__ = ["Model", "direct", "on_every_seed", "see_out", "turns"]

SEEDS = 200


def on_every_seed(play: Callable[[random.Random], Coroutine[Any, Any, None]]) -> None:
    """Run this with one random generator after the other; what fails says with which."""
    for seed in range(SEEDS):
        try:
            flowno.run(play(random.Random(seed)))
        except BaseException as error:
            error.add_note(f"with seed {seed}")
            raise


async def turns(rng: random.Random, most: int = 3) -> None:
    """Let the others run, or not."""
    for _ in range(rng.randrange(most + 1)):
        await sleep(0)


class Model:
    """What a model says of its tasks, which are known by their numbers."""

    def __init__(self) -> None:
        self.cancelled: set[int] = set()

    def queues(self) -> Iterator[list[int]]:
        """The numbers of those who wait, by what they wait for."""
        raise NotImplementedError

    def cancel(self, number: int) -> None:
        """A task is told to end: it leaves the queue that it waits in, and if it waits in none it has what it got."""
        self.cancelled.add(number)
        for queue in self.queues():
            if number in queue:
                queue.remove(number)

    def wait(self, queue: list[int], number: int) -> None:
        """A task waits; but where it was told to end before, it is told so now."""
        if number not in self.cancelled:
            queue.append(number)


async def direct(
    rng: random.Random,
    model: Model,
    worker: Callable[[int], Coroutine[Any, Any, None]],
    compare: Callable[[], None],
    interfere: Callable[[], object] = lambda: None,
) -> dict[int, TaskHandle[None]]:
    """Start workers, cancel some, and compare after each turn.

    Args:
        rng: Decides.
        model: Is told who is cancelled.
        worker: Called with its number.
        compare: Raises where the model and what it is the model of are not the same.
        interfere: Does something to them that is not a worker's business.

    Returns:
        The workers that have not ended.
    """
    tasks: dict[int, TaskHandle[None]] = {}
    for number in range(12):
        tasks[number] = await spawn(worker(number))
        compare()
        await turns(rng, 1)
        for ended in [number for number, task in tasks.items() if task.is_finished or task.is_error]:
            await tasks.pop(ended).join()
        if tasks and rng.random() < 0.4:
            unlucky = rng.choice(list(tasks))
            model.cancel(unlucky)
            tasks[unlucky].cancel()
            compare()
        interfere()
        compare()
    return tasks


async def see_out(model: Model, tasks: dict[int, TaskHandle[None]]) -> None:
    """Wait for the workers; those that were told to end may have."""
    for number, task in tasks.items():
        try:
            await task.join()
        except TaskCancelled:
            assert number in model.cancelled, f"task {number} was cancelled, and nobody has told it to"
