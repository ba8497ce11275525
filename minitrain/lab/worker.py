"""Worker processes of one thread each. A crash takes one task with it, and when the caller dies, so do its workers.

The caller's own script is not run again in a worker, so that a lesson or a notebook needs no guard around its last lines.
"""

import contextlib
import os
import pickle
import pickletools
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from minitrain.lab.lessons import make_lessons_importable

ONE_THREAD = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "VECLIB_MAXIMUM")}
NEW_GROUP = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)  # what a new session is on Windows


class Worker:
    """A process that carries out one task after another; a new one takes its place when it has died."""

    def __init__(self):
        self.process: subprocess.Popen[bytes] | None = None

    def call(self, task: bytes) -> str | None:
        """Carries out a pickled task (see `pack`) and returns None, or what went wrong."""
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "minitrain.lab.worker"],  # -P: a `copy.py` in this folder is not ours
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, **ONE_THREAD},
                start_new_session=True,  # Ctrl-C reaches only the caller
                creationflags=NEW_GROUP,
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            pickle.dump(task, self.process.stdin)
            self.process.stdin.flush()
            return pickle.load(self.process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):  # it has died
            code = self.stop()
            return f"its process ended with {f'signal {-code}' if code < 0 else f'exit code {code}'}"

    def stop(self, kill: bool = False) -> int:
        """Ends the process, at once or as it ends by itself, and returns its exit code."""
        process, self.process = self.process, None
        if process is None:
            return 0
        if kill:
            process.kill()
        with contextlib.suppress(OSError), process:  # closes the pipes and waits
            pass
        return process.wait()


def pack(function: Callable, /, **arguments: Any) -> bytes:
    """A task, with the folders that modules may be imported from. Raises `ValueError` for what cannot be sent.

    A function of the script that Python was started with has no module that a worker could import.
    """
    try:
        call = pickle.dumps((function, arguments))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"a worker process cannot be given this ({error}); use module-level functions") from None
    if any(argument == "__main__" for _, argument, _ in pickletools.genops(call)):
        raise ValueError(
            "a worker process cannot import from the script that was started; move its functions to a module"
        )
    return pickle.dumps((sys.path, call))


def carry_out_all(tasks: Sequence[bytes], workers: int) -> Generator[tuple[int, str | None]]:
    """`(index of the task, None or what went wrong)` of each task, as they end."""
    idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
    everybody = [Worker() for _ in range(workers)]
    for worker in everybody:
        idle.put(worker)

    def one(task: bytes) -> str | None:
        worker = idle.get()
        try:
            return worker.call(task)
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(workers)
    try:
        futures = {pool.submit(one, task): i for i, task in enumerate(tasks)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in everybody:
            worker.stop(kill=True)


def main() -> None:
    """What a worker process does: tasks from standard input, answers to standard output, a task's prints to the errors."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        try:
            while True:
                tasks.put(pickle.load(sys.stdin.buffer))
        finally:
            os._exit(0)  # the caller has gone; whatever is being computed is resumed by the next one

    threading.Thread(target=listen, daemon=True).start()
    make_lessons_importable()
    while True:
        path, call = pickle.loads(tasks.get())
        try:
            sys.path[:] = path
            function, arguments = pickle.loads(call)
            function(**arguments)
            answer = None
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            answer = f"{type(error).__name__}: {error} ({os.path.basename(where.filename)}, line {where.lineno})"
        pickle.dump(answer, answers)
        answers.flush()


if __name__ == "__main__":
    main()
