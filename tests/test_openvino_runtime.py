"""Signals after OpenVINO was used: its CPU plugin changes the thread's alternative signal stack."""

import subprocess
import sys
import textwrap

import pytest

PROGRAM = """
    import faulthandler, gc, signal
    faulthandler.enable()  # gives the thread an alternative stack, as pytest does
    from fastdetect.faces.network import load_network
    first = load_network("openvino")
    second = load_network("openvino")
    del first
    gc.collect()
    del second
    gc.collect()
    seen = []
    signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
    signal.raise_signal(signal.SIGUSR1)
    print("seen" if seen else "lost")
"""


def test_a_signal_after_networks_came_and_went() -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'fastdetect[openvino]'")
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(PROGRAM)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "seen\n"), done.stderr
