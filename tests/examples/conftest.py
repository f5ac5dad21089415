"""What every test of a script needs: the scripts on the path, and a process as if it were its own."""

import signal
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState


HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1] / "examples")]


@pytest.fixture(autouse=True)
def own_process():
    """Scripts set signal handlers and the state of Accelerate."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)
    for number, handler in handlers.items():
        signal.signal(number, handler)
