"""A fresh Hub for each test, clients in processes of their own, and tiny checkpoints to push."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch


HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE / "client_path")]

from clients import Outcome, client_environment, finish_client, start_client  # noqa: E402
from loopback import LoopbackHub  # noqa: E402

from gfm_hf import GFMConfig, GFMForPreTraining, GFMImageProcessor  # noqa: E402


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub
    assert not hub.bugs, hub.bugs[0]


@pytest.fixture(scope="session")
def client(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Outcome]:
    """Run Python source as a client, by default with an empty cache, in an empty folder.

    `client(hub, source, home=None, cwd=None, installed=True, check=True, **environment)` gives an Outcome. The source
    may use `say(value)` to answer and everything else in client_tools.
    """

    def run(
        hub: LoopbackHub,
        source: str,
        home: Path | None = None,
        cwd: Path | None = None,
        installed: bool = True,
        check: bool = True,
        **environment: str,
    ) -> Outcome:
        home, cwd = (folder or tmp_path_factory.mktemp("client") for folder in (home, cwd))
        known = client_environment(hub, home, installed, **environment)
        return finish_client(start_client(source, known, cwd), check)

    return run


@pytest.fixture(scope="session")
def save_checkpoint() -> Callable[..., Path]:
    """Save a model of one or two blocks a stage, with its processor, into a folder.

    `save_checkpoint(folder, model_class=GFMForPreTraining, **settings)`. Every parameter is random: none may pass
    for another because both are zero.
    """

    def save(folder: Path, model_class: type = GFMForPreTraining, **settings: Any) -> Path:
        torch.manual_seed(0)
        sizes = {"image_size": 64, "embed_dim": 8, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4), "window_size": 4}
        model = model_class(GFMConfig(**sizes | settings))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(folder)
        GFMImageProcessor(size=64).save_pretrained(folder)
        return folder

    return save


@pytest.fixture(scope="session")
def checkpoint(save_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretrained model and its processor, as save_pretrained writes them. Not to be changed."""
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="session")
def large_checkpoint(save_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with weights of more than 12 MiB, long enough to break in the middle. Not to be changed."""
    return save_checkpoint(tmp_path_factory.mktemp("large"), embed_dim=48, depths=(1, 1, 1, 1))
