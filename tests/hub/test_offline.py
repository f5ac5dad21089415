"""Loading from the cache, when there is no network or the Hub is ill."""

import pytest
from client_tools import digests

from gfm_hf import GFMModel


LOAD = """
from transformers import AutoImageProcessor, AutoModel
AutoImageProcessor.from_pretrained("owner/m", trust_remote_code=True)
say(digests(AutoModel.from_pretrained("owner/m", trust_remote_code=True)))
"""


@pytest.fixture
def stocked_hub(hub, checkpoint):
    hub.add_repo("owner/m", {path.name: path.read_bytes() for path in checkpoint.iterdir()})
    return hub


@pytest.fixture
def expected(checkpoint):
    return digests(GFMModel.from_pretrained(checkpoint))


def test_the_second_load_needs_no_network_and_survives_an_ill_hub(stocked_hub, client, expected, tmp_path):
    assert client(stocked_hub, LOAD, home=tmp_path, installed=False).value == expected
    before = len(stocked_hub.requests)
    assert client(stocked_hub, LOAD, home=tmp_path, installed=False, HF_HUB_OFFLINE="1").value == expected
    assert len(stocked_hub.requests) == before
    stocked_hub.fail(None, "", status=503, times=None)
    assert client(stocked_hub, LOAD, home=tmp_path, installed=False).value == expected
    assert stocked_hub.requests[-1].status == 503


def test_the_first_load_survives_a_hub_that_cannot_name_the_commit(stocked_hub, client, expected):
    stocked_hub.fail("GET", "/api/models/owner/m", status=503, times=None)
    assert client(stocked_hub, LOAD, installed=False).value == expected
    assert stocked_hub.asked("HEAD", "/resolve/main/preprocessor_config.json")


def test_without_network_and_cache_the_error_says_so(stocked_hub, client):
    source = """
from transformers import AutoModel
say([failure(lambda: AutoModel.from_pretrained("owner/m", trust_remote_code=True)), cached_files()])
"""
    error, cached = client(stocked_hub, source, installed=False, HF_HUB_OFFLINE="1").value
    assert "OSError" in error["types"] and "offline" in error["says"].lower()
    assert not cached and not stocked_hub.requests


def test_a_download_that_breaks_leaves_nothing_that_looks_whole(stocked_hub, client, expected, tmp_path):
    """The client tries again five times by itself; then the load fails, and the next one succeeds."""
    stocked_hub.cut("/model/owner/m/", after_bytes=10_000, times=6)
    source = """
from transformers import AutoModel
load = lambda: AutoModel.from_pretrained("owner/m", trust_remote_code=True)
say([failure(load), cached_files(), digests(load())])
"""
    error, cached, weights = client(stocked_hub, source, home=tmp_path, installed=False).value
    assert error and not [file for file in cached if file.endswith("model.safetensors")]
    assert weights == expected
    statuses = [request.status for request in stocked_hub.requests if request.port == "cdn"]
    assert len(statuses) == 7
