"""Jobs for the worker tests: some compute, some do real harm to the process that runs them."""

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from fastdetect.errors import MediaError
from fastdetect.reasons import Reason


def run(job):
    kind, value = job
    return globals()[kind](value)


def double(value):
    return 2 * value


def noise(seed):
    return np.random.default_rng(seed).integers(0, 256, (16, 224, 224, 3), dtype=np.uint8)


def where(_):
    return os.getpid()


def nap(seconds):
    time.sleep(seconds)
    return seconds


def signal_itself(number):
    os.kill(os.getpid(), number)
    time.sleep(5)


def signal_and_go_on(number):
    os.kill(os.getpid(), number)
    return os.getpid()


def read_null(_):
    ctypes.string_at(0)


def leave(code):
    os._exit(code)


def spin(_):
    while True:
        pass


def hog(size):
    return len(bytearray(size))


def hog_in_c(size):
    """Take memory as a C library does, which then dies of a null pointer."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype = ctypes.c_void_p
    libc.memset(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(size))), 1, ctypes.c_size_t(size))
    return size


def open_files(count):
    return len([os.open("/dev/null", os.O_RDONLY) for _ in range(count)])


def refuse(message):
    raise MediaError(Reason.UNSUPPORTED_CODEC, message)


def fail(message):
    raise ValueError(message)


def shout(text):
    print(text)
    return text


def unpicklable(_):
    return lambda: 0


def settings(_):
    import resource

    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "data": resource.getrlimit(resource.RLIMIT_DATA)[0],
        "as": resource.getrlimit(resource.RLIMIT_AS)[0],
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "no_new_privs": int(status["NoNewPrivs"]),
        "interrupt": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
        "environment": os.environ.get("FASTDETECT_TEST"),
        "main": sys.modules["__main__"].__dict__.get("__file__"),
    }


class Stumbling:
    """Is killed while it starts, as often as there are files in a folder."""

    def __init__(self, folder):
        for file in Path(folder).iterdir():
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, job):
        return job


class Counter:
    """A job whose set-up is kept between calls."""

    def __init__(self, start=0, fault=None):
        if fault == "raise":
            raise RuntimeError("no model here")
        if fault == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if fault == "hang":
            time.sleep(60)
        self.value = start

    def __call__(self, step):
        self.value += step
        return self.value


def with_options(job, *, factor):
    return job * factor
