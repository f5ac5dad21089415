"""Client processes: HF_ENDPOINT is read once, at import, so each Hub needs clients started after it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from client_tools import SAID
from loopback import LoopbackHub


HERE = Path(__file__).parent


class Outcome(NamedTuple):
    """What a client process left: the value it said, if any, and the process."""

    value: Any
    process: subprocess.CompletedProcess[str]


def client_environment(hub: LoopbackHub, home: Path, installed: bool = True, **more: str) -> dict[str, str]:
    """Environment of a client that knows this Hub alone.

    Args:
        home: HF_HOME, the cache.
        installed: Whether gfm_hf can be imported.
        more: Further variables; an empty HF_TOKEN means nobody.
    """
    folders = [HERE / "client_path", *([] if installed else [HERE / "blocker"])]
    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": "hf_owner",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "DISABLE_SAFETENSORS_CONVERSION": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
        "PATH": os.environ.get("PATH", ""),
        "PYTHONPATH": os.pathsep.join(map(str, folders)),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return environment | more


def start_client(source: str, environment: dict[str, str], cwd: Path) -> subprocess.Popen[str]:
    """A client that runs `source`, with everything in client_tools at hand."""
    return subprocess.Popen(
        [sys.executable, "-c", f"from client_tools import *\n{source}"],
        env=environment,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish_client(process: subprocess.Popen[str], check: bool = True, timeout_s: float = 120) -> Outcome:
    """Wait for a client and take what it said last."""
    try:
        stdout, stderr = process.communicate(timeout=timeout_s)
    finally:
        process.kill()
    assert not check or process.returncode == 0, stderr[-4000:]
    said = [line.removeprefix(SAID) for line in stdout.splitlines() if line.startswith(SAID)]
    value = json.loads(said[-1]) if said else None
    return Outcome(value, subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr))
