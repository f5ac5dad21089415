"""Fixtures of the whole suite: tiny models, fixed seeds, no network."""

from pathlib import Path

import pytest
import torch

from gfm_hf import GFMConfig


# More threads than the workers of a parallel test run have cores only wait for each other.
torch.set_num_threads(1)

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def tiny_config():
    return GFMConfig(image_size=64, embed_dim=8, depths=(1, 1, 2, 1), num_heads=(1, 2, 2, 4), window_size=4)


@pytest.fixture(scope="session")
def parity_dir():
    folder = SHARED / "parity"
    if not folder.is_dir():
        pytest.skip("the recorded numbers of the authors' code (../shared/parity) are not here")
    return folder
