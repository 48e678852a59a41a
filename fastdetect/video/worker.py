"""Worker processes for jobs that may crash, hang or eat memory: each such job costs itself only.

This contains accidents. It is no sandbox against code that takes a worker over.
"""

import contextlib
import ctypes
import importlib
import os
import pickle
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from multiprocessing.connection import Connection, wait
from typing import Any

import psutil

from fastdetect.errors import FastdetectError, MediaError, UsageError
from fastdetect.reasons import Reason

_POLL_S = 0.2  # how often CPU time is looked at
_STARTS = 3  # workers that die while they start, one after another, before the pool gives up
_STALL_S = 20.0  # a worker that stops in the middle of a message for this long counts as hung
_BAD_PICKLE = (
    pickle.UnpicklingError,
    AttributeError,
    ImportError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
)
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_STOPS = (signal.SIGINT, signal.SIGTERM)  # what stops a run is the parent's to hear, though its whole group gets it


@dataclass(frozen=True)
class WorkerLimits:
    """What one worker process may use; None lifts a limit.

    Args:
        timeout_s: wall-clock seconds for one job.
        cpu_s: CPU seconds of all threads for one job.
        start_timeout_s: wall-clock seconds for the imports and the set-up of a worker.
        memory_bytes: private writable memory (RLIMIT_DATA); importing torch and ONNX Runtime takes 0.8 GB.
        address_space_bytes: all mapped memory (RLIMIT_AS); torch maps 3.3 GB. Lift it for CUDA, which
            reserves far more addresses than it uses.
        open_files: file descriptors (RLIMIT_NOFILE).
        max_result_bytes: size of one result.
    """

    timeout_s: float = 120.0
    cpu_s: float | None = 240.0
    start_timeout_s: float = 180.0
    memory_bytes: int | None = 8 * 2**30
    address_space_bytes: int | None = 64 * 2**30
    open_files: int | None = 512
    max_result_bytes: int = 2**30


@dataclass(frozen=True)
class JobResult:
    """What came of one job: `value`, or the `error` that it cost."""

    id: int
    job: Any
    value: Any
    error: FastdetectError | None
    seconds: float


@dataclass
class _Job:
    id: int
    job: Any
    data: bytes  # pickled


class _Worker:
    """One process and the parent's end of its socket."""

    def __init__(self, start: bytes, limits: WorkerLimits, env: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(_STALL_S), 0))
            for end in (
                ours,
                theirs,
            ):  # the kernel's default took 20 ms, not 11, for 2.4 MB between two busy cores
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * 2**20)
            code = f"from fastdetect.video.worker import _main; _main({theirs.fileno()}, {os.getpid()})"
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", code],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=2,  # what a job prints must not mix with the program's own output
                env={**os.environ, "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path), **env},
            )
        self.pipe = Connection(ours.detach())
        self.limits = limits
        self.ready = False
        self.job: _Job | None = None
        self.since = time.monotonic()
        self.cpu_since = 0.0
        try:
            self.pipe.send_bytes(start)
        except OSError as error:
            raise FastdetectError(f"a worker process died at once: {self.end(0.5)}") from error

    def begin(self, job: "_Job") -> None:
        self.job, self.since, self.cpu_since = job, time.monotonic(), self.cpu_seconds()
        self.pipe.send_bytes(job.data)

    def cpu_seconds(self) -> float:
        try:
            times = psutil.Process(self.process.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return times.user + times.system

    def overdue(self) -> str | None:
        """Say which limit is passed, if any."""
        elapsed = time.monotonic() - self.since
        if not self.ready:
            if elapsed > self.limits.start_timeout_s:
                return f"did not start within {self.limits.start_timeout_s:g} s"
        elif self.job is not None:
            if elapsed > self.limits.timeout_s:
                return f"took over {self.limits.timeout_s:g} s of wall-clock time"
            if self.limits.cpu_s is not None and self.cpu_seconds() - self.cpu_since > self.limits.cpu_s:
                return f"took over {self.limits.cpu_s:g} s of CPU time"
        return None

    def end(self, patience_s: float = 0.0) -> str:
        """Close the pipe, wait a little, kill, reap; say how the process ended."""
        self.pipe.close()
        try:
            code = self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        if code >= 0:
            return f"exit code {code}"
        meaning = "killed, perhaps for want of memory" if code == -signal.SIGKILL else signal.strsignal(-code)
        return f"{signal.Signals(-code).name} ({meaning})"


class WorkerPool:
    """Run jobs in worker processes, each with limits and a time-out, and stream the results as they come.

    A crash gives that job a MediaError(CRASH) that names the signal, a time-out a MediaError(TIMEOUT); the
    worker is replaced and other jobs never notice. Workers are fresh interpreters (nothing is forked), ignore
    Ctrl-C and SIGTERM, and die with this process. Jobs and results are pickled.

    Args:
        function: 'module:callable'. A class is made once per worker with init_args and its instance called
            with each job; a function is called with (job, **init_args).
        workers: number of processes, >= 1.
        init_args: keyword arguments, see above.
        limits: see `WorkerLimits`.
        max_in_flight: jobs that may be running, or finished and not yet taken; default 2 * workers + 2.
            Beyond it nothing is started, so that a slow reader holds the workers back.
        env: environment variables for the workers, such as OMP_NUM_THREADS.

    Example:
        >>> with WorkerPool("math:sqrt", workers=2) as pool:
        ...     sorted(result.value for result in pool.map([4.0, 9.0]))
        [2.0, 3.0]
    """

    def __init__(
        self,
        function: str,
        *,
        workers: int = 1,
        init_args: Mapping[str, Any] | None = None,
        limits: WorkerLimits | None = None,
        max_in_flight: int | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        if function.count(":") != 1 or not all(function.split(":")):
            raise UsageError(f"a worker function is 'module:callable', got {function!r}")
        if workers < 1 or (max_in_flight is not None and max_in_flight < 1):
            raise UsageError(f"workers and max_in_flight must be >= 1, got {workers} and {max_in_flight}")
        self._limits = limits or WorkerLimits()
        self._start = pickle.dumps((function, dict(init_args or {}), self._limits), protocol=5)
        self._env = dict(env or {})
        self._count = workers
        self._bound = max_in_flight or 2 * workers + 2
        self._pending: deque[_Job] = deque()
        self._done: deque[JobResult] = deque()
        self._submitted = self._taken = self._running = self._dead_starts = 0
        self._failure: FastdetectError | None = None
        self._closing = False
        self._change = threading.Condition()
        self._wake_end, self._wake = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="fastdetect-workers", daemon=True)
        self._thread.start()

    def submit(self, job: Any) -> int:
        """Queue a job and return its number; it starts when a worker is free and results are being taken."""
        try:
            data = pickle.dumps(job, protocol=5)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise UsageError(f"a job must be picklable, got {type(job).__name__}: {error}") from error
        with self._change:
            self._check()
            number = self._submitted
            self._submitted += 1
            self._pending.append(_Job(number, job, data))
        self._poke()
        return number

    def results(self) -> Iterator[JobResult]:
        """Yield results in order of completion until every submitted job has given one.

        Raises:
            FastdetectError: where workers cannot start.
        """
        while True:
            with self._change:
                while not self._done and self._taken < self._submitted:
                    self._check()
                    self._change.wait()
                if not self._done:
                    return
                result = self._done.popleft()
                self._taken += 1
            self._poke()
            yield result

    def map(self, jobs: Iterable[Any]) -> Iterator[JobResult]:
        """Take jobs one at a time as there is room, and yield their results in order of completion."""
        waiting = iter(jobs)
        for job in islice(waiting, self._bound):
            self.submit(job)
        for result in self.results():
            for job in islice(waiting, 1):
                self.submit(job)
            yield result

    def close(self) -> None:
        """End every worker; jobs that run are dropped. Safe to call twice."""
        with self._change:
            self._closing = True
            self._change.notify_all()
        self._poke()
        self._thread.join()
        self._wake.close()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _poke(self) -> None:
        """Make the watching thread look again (it may have ended)."""
        with contextlib.suppress(OSError):
            self._wake.send(b".")

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closing:
            raise UsageError("this worker pool is closed; make a new one")

    def _run(self) -> None:
        """Keep the workers busy and watch them; the only thread that touches them."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)  # workers begin with this thread's mask, until _confine
        workers: list[_Worker] = []
        try:
            while not self._closing:
                workers += [self._spawn() for _ in range(self._count - len(workers))]
                self._hand_out(workers)
                self._wait(workers)
        except FastdetectError as error:
            self._fail(error)
        except Exception as error:  # a fault here must end results(), not leave its caller waiting for ever
            self._fail(FastdetectError(f"the worker pool broke: {error!r}"))
        finally:
            for worker in workers:
                worker.end()
            self._wake_end.close()

    def _fail(self, error: FastdetectError) -> None:
        with self._change:
            self._failure = error
            self._change.notify_all()

    def _spawn(self) -> _Worker:
        try:
            return _Worker(self._start, self._limits, self._env)
        except OSError as error:
            raise FastdetectError(f"cannot start a worker process: {error}") from error

    def _hand_out(self, workers: list[_Worker]) -> None:
        for worker in list(workers):
            if not worker.ready or worker.job is not None:
                continue
            with self._change:
                if not self._pending or self._running + len(self._done) >= self._bound:
                    return
                job = self._pending.popleft()
                self._running += 1
            try:
                worker.begin(job)
            except OSError:
                self._replace(workers, worker, None)

    def _wait(self, workers: list[_Worker]) -> None:
        busy = any(worker.job is not None or not worker.ready for worker in workers)
        for end in wait([self._wake_end, *(worker.pipe for worker in workers)], _POLL_S if busy else None):
            if end is self._wake_end:
                self._wake_end.recv(4096)
                continue
            worker = next(w for w in workers if w.pipe is end)
            try:
                kind, value = pickle.loads(worker.pipe.recv_bytes(self._limits.max_result_bytes))
            except (EOFError, ConnectionError):
                self._replace(workers, worker, None)
            except BlockingIOError:
                self._replace(workers, worker, "stalled in the middle of its result", Reason.TIMEOUT)
            except (OSError, MemoryError, *_BAD_PICKLE) as error:
                self._replace(workers, worker, f"gave a result that cannot be read: {error!r}")
            else:
                self._receive(worker, kind, value)
        for worker in list(workers):
            late = worker.overdue()
            if late is not None:
                self._replace(workers, worker, late, Reason.TIMEOUT)

    def _receive(self, worker: _Worker, kind: str, value: Any) -> None:
        if kind == "ready":
            worker.ready, self._dead_starts = True, 0
        elif kind == "no start":
            raise value
        else:
            self._finish(worker, value, None) if kind == "value" else self._finish(worker, None, value)

    def _replace(
        self, workers: list[_Worker], worker: _Worker, what: str | None, reason: Reason = Reason.CRASH
    ) -> None:
        workers.remove(worker)
        ended = worker.end(0.5 if what is None else 0.0)
        if not worker.ready:
            self._dead_starts += 1
            if what or self._dead_starts == _STARTS:  # one may die for want of memory, which comes back
                raise FastdetectError(f"a worker process {what or f'died while it started: {ended}'}")
        if worker.job is not None:
            message = f"the job {what}" if what else f"the worker process died in this job: {ended}"
            self._finish(worker, None, MediaError(reason, message))

    def _finish(self, worker: _Worker, value: Any, error: FastdetectError | None) -> None:
        assert worker.job is not None
        done, worker.job = worker.job, None
        with self._change:
            self._running -= 1
            self._done.append(JobResult(done.id, done.job, value, error, time.monotonic() - worker.since))
            self._change.notify_all()


def _load(function: str, init_args: Mapping[str, Any]) -> Callable[[Any], Any]:
    module, name = function.split(":")
    target = getattr(importlib.import_module(module), name)
    if isinstance(target, type):
        return target(**init_args)
    return (lambda job: target(job, **init_args)) if init_args else target


def _confine(limits: WorkerLimits, parent: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    for which, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, limits.open_files),
        (resource.RLIMIT_DATA, limits.memory_bytes),
        (resource.RLIMIT_AS, limits.address_space_bytes),
    ):
        if value is not None:
            hard = resource.getrlimit(which)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(which, (value, value))


def _main(descriptor: int, parent: int) -> None:
    """Serve jobs until the parent closes the pipe (the body of a worker process)."""
    pipe = Connection(descriptor)
    os.set_inheritable(descriptor, False)

    def reply(kind: str, value: Any) -> None:
        pipe.send_bytes(pickle.dumps((kind, value), protocol=5))

    def error_of(error: BaseException) -> FastdetectError:
        if isinstance(error, FastdetectError):
            return error
        where = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({os.path.basename(where.filename)}:{where.lineno})"
        return MediaError(Reason.CRASH, f"out of memory: {text}" if isinstance(error, MemoryError) else text)

    try:
        function, init_args, limits = pickle.loads(pipe.recv_bytes())
        _confine(limits, parent)
        try:
            call = _load(function, init_args)
        except BaseException as error:
            reply("no start", FastdetectError(f"a worker could not set up {function}: {error_of(error)}"))
            os._exit(1)
        reply("ready", None)
        while True:
            job = pickle.loads(pipe.recv_bytes())
            try:
                value = call(job)
                reply("value", value)
            except BaseException as error:  # also when the value cannot be pickled
                reply("error", error_of(error))
            value = job = None  # hold no result while waiting for the next job
    except (EOFError, ConnectionError):
        os._exit(0)  # the parent closed the pipe: nothing to tidy, and library tear-down is a risk
