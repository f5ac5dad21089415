"""Every folder of dataset_scripts, its small archive, and what the script makes of it."""

import sys
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest


HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "hub"), str(HERE.parent / "hub" / "client_path")]

from loopback import LoopbackHub  # noqa: E402
from scripts import SCRIPTS, Script  # noqa: E402


@pytest.fixture(scope="session", params=SCRIPTS)
def script(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Script:
    """One data set: its module, its raw files in small, and a finished build of all configurations."""
    return Script.prepare(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(autouse=True)
def fresh_caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` knows a local folder by its name and card, so an earlier run could answer for this one."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", str(tmp_path_factory.mktemp("downloads")))


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub
    assert not hub.bugs, hub.bugs[0]
