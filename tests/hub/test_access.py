"""Who may load and push what, and what those who may not are told."""

import shutil

import pytest
from client_tools import digests

from gfm_hf import GFMModel


@pytest.fixture
def guarded_hub(hub, checkpoint):
    """owner/private, and owner/gated whose gate has let the guest in but not the stranger."""
    hub.users["hf_stranger"] = "stranger"
    files = {path.name: path.read_bytes() for path in checkpoint.iterdir()}
    hub.add_repo("owner/private", files, private=True)
    hub.add_repo("owner/gated", files, gated=True).granted.add("guest")
    return hub


REFUSED = {
    "private, nobody": ("owner/private", {"token": False}, "OSError", "not a valid model identifier"),
    "private, another": ("owner/private", {"token": "hf_guest"}, "OSError", "not a valid model identifier"),
    "gated, nobody": ("owner/gated", {"token": False}, "OSError", "gated repo"),
    "gated, no grant": ("owner/gated", {"token": "hf_stranger"}, "OSError", "gated repo"),
    "missing": ("owner/nowhere", {}, "OSError", "not a valid model identifier"),
    "missing revision": ("owner/private", {"revision": "v9"}, "OSError", "v9 is not a valid git identifier"),
    "bad token": ("owner/gated", {"token": "hf_wrong"}, "OSError", "Invalid credentials in Authorization header"),
}


def test_refused_loads_say_why_and_leave_nothing(guarded_hub, client):
    cases = {name: (repo, settings) for name, (repo, settings, _, _) in REFUSED.items()}
    source = f"""
from transformers import AutoModel
load = lambda repo, settings: AutoModel.from_pretrained(repo, trust_remote_code=True, **settings)
say([{{name: failure(lambda: load(*case)) for name, case in {cases}.items()}}, cached_files()])
"""
    errors, cached = client(guarded_hub, source, installed=False).value
    for name, (_, _, kind, says) in REFUSED.items():
        assert errors[name] and kind in errors[name]["types"] and says in errors[name]["says"], (name, errors[name])
    assert not [file for file in cached if "/snapshots/" in file or "/blobs/" in file], cached


def test_the_hubs_own_client_names_each_refusal(guarded_hub, client):
    kinds = {
        "private, nobody": "RepositoryNotFoundError",
        "private, another": "RepositoryNotFoundError",
        "gated, nobody": "GatedRepoError",
        "gated, no grant": "GatedRepoError",
        "missing": "RepositoryNotFoundError",
        "missing revision": "RevisionNotFoundError",
        "bad token": "HfHubHTTPError",
    }
    cases = {name: (repo, settings) for name, (repo, settings, _, _) in REFUSED.items()}
    source = f"""
from huggingface_hub import hf_hub_download
load = lambda repo, settings: hf_hub_download(repo, "config.json", **settings)
say([{{name: failure(lambda: load(*case)) for name, case in {cases}.items()}}, cached_files()])
"""
    errors, cached = client(guarded_hub, source).value
    for name, error in errors.items():
        assert kinds[name] in error["types"], (name, error)
    assert not [file for file in cached if "/snapshots/" in file or "/blobs/" in file], cached


def test_with_the_right_token_private_and_gated_models_load(guarded_hub, client, checkpoint):
    source = """
from transformers import AutoModel
load = lambda **settings: digests(AutoModel.from_pretrained(trust_remote_code=True, **settings))
say([load(pretrained_model_name_or_path="owner/private"),
     load(pretrained_model_name_or_path="owner/gated", token="hf_guest")])
"""
    expected = digests(GFMModel.from_pretrained(checkpoint))
    assert client(guarded_hub, source, installed=False).value == [expected, expected]
    sent = [request.headers.get("authorization") for request in guarded_hub.requests if request.port == "cdn"]
    assert sent == [None, None], "the token went to another origin"


def test_refused_pushes_say_what_to_do_and_change_nothing(guarded_hub, client, checkpoint, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "model")
    guarded_hub.users["hf_reader"] = "owner"
    guarded_hub.read_only.add("hf_reader")
    guarded_hub.add_repo("owner/public")
    before = {name: list(repo.commits) for name, repo in guarded_hub.repos.items()}
    source = f"""
from gfm_hf.hub import push_checkpoint
from gfm_hf_cli import main
push = lambda repo, **settings: failure(lambda: push_checkpoint({str(tmp_path / "model")!r}, repo, **settings))
say([push("owner/new", token="hf_wrong"), push("owner/new", token="hf_reader"), push("guest/new"),
     push("owner/public", private=True), push("owner//new"), push("new", private=True)])
sys.exit(main(["push", {str(tmp_path / "model")!r}, "owner/new", "--token", "hf_wrong"]))
"""
    outcome = client(guarded_hub, source, check=False)
    *refusals, accepted = outcome.value
    advice = ("hf auth login", "type write", "hf auth login", "is public", "namespace/name")
    for refusal, says in zip(refusals, advice, strict=True):
        assert refusal["types"][:2] == ["PushError", "ValueError"], refusal
        assert says in refusal["says"] and "\n" not in refusal["says"], refusal
    assert outcome.process.returncode == 2
    assert outcome.process.stderr.splitlines()[-1].startswith("error: Pushing to owner/new failed:")
    assert "Traceback" not in outcome.process.stderr
    assert accepted is None and guarded_hub.repos.pop(("model", "owner/new")).private
    assert {name: list(repo.commits) for name, repo in guarded_hub.repos.items()} == before
