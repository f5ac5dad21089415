"""Pushing: what arrives, what is not sent twice, and what happens when the way is bad."""

import hashlib
import shutil
import time

import pytest
from clients import client_environment, start_client


MIB = 1024 * 1024
PUSH = """
from gfm_hf_cli import main
sys.exit(main(["push", {folder!r}, "owner/m"]))
"""


@pytest.fixture
def folder(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "model")


@pytest.fixture
def large_folder(large_checkpoint, tmp_path):
    """With a small file beside the weights that goes the same way, by LFS."""
    folder = shutil.copytree(large_checkpoint, tmp_path / "large")
    (folder / "panels.png").write_bytes(b"a small image")
    return folder


def read_folder(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def oid_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_arrived(hub, folder):
    """The Hub has the folder, bit by bit, as one commit after the one of the creation."""
    remote = hub.files("owner/m")
    remote.pop(".gitattributes")
    assert remote == read_folder(folder)
    assert len(hub.repo("owner/m").commits) == 2


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)


def test_a_push_brings_all_and_a_repetition_only_what_changed(hub, client, folder):
    """Also in that a person's edit of the card on the Hub survives the next push of the folder."""
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "model.safetensors").write_bytes(b"for resuming")
    pushed = client(hub, PUSH.format(folder=str(folder)))
    shutil.rmtree(folder / "checkpoint-10")
    assert_arrived(hub, folder)
    first = hub.repo("owner/m").find("main")
    assert pushed.process.stdout.strip() == f"{hub.url}/owner/m/commit/{first.sha}"
    assert first.files["model.safetensors"].lfs and not first.files["README.md"].lfs
    card = first.files["README.md"].content
    assert b"owner/m" in card and b"library_name: transformers" in card
    source = f"""
from huggingface_hub import HfApi
from gfm_hf.hub import push_checkpoint
push = lambda: push_checkpoint({str(folder)!r}, "owner/m")
say(push())
card = {card!r} + b"\\nA person's remark.\\n"
HfApi().upload_file(repo_id="owner/m", path_in_repo="README.md", path_or_fileobj=card)
push()
(Path({str(folder)!r}) / "note.txt").write_text("for the branch")
push_checkpoint({str(folder)!r}, "owner/m", revision="next/try")
"""
    assert client(hub, source).value.endswith(first.sha), "nothing changed, yet there is a new commit"
    titles = [commit.title for commit in hub.repo("owner/m").history(hub.repo("owner/m").find("main"))]
    assert titles == ["Upload README.md with huggingface_hub", first.title, "initial commit"]
    assert hub.files("owner/m")["README.md"] == card + b"\nA person's remark.\n"
    assert set(hub.files("owner/m", "next/try")) == {*hub.files("owner/m"), "note.txt"}
    assert len(hub.asked("PUT", "", port="cdn")) == 1, "the weights were sent again"


def test_killed_in_the_middle_and_pushed_again(hub, client, large_folder, tmp_path):
    """The second time the connection drops too, which the client repairs by itself."""
    weights, panels = (oid_of(large_folder / name) for name in ("model.safetensors", "panels.png"))
    hub.delay(weights, seconds=60, after_bytes=4 * MIB, times=1)
    before = read_folder(large_folder)
    victim = start_client(PUSH.format(folder=str(large_folder)), client_environment(hub, tmp_path / "home"), tmp_path)
    try:
        wait_until(lambda: hub.asked("PUT", weights, port="cdn") and panels in hub.repo("owner/m").stored)
        wait_until(lambda: hub.asked("PUT", weights, port="cdn")[0].received >= 4 * MIB)
    finally:
        victim.kill()
        victim.communicate()
    assert list(hub.files("owner/m")) == [".gitattributes"], "half a push is visible"
    after = read_folder(large_folder)
    assert {name: after[name] for name in before if name != "README.md"} == before
    hub.cut(weights, after_bytes=6 * MIB, method="PUT")
    client(hub, PUSH.format(folder=str(large_folder)))
    assert_arrived(hub, large_folder)
    assert len(hub.asked("PUT", panels, port="cdn")) == 1, "what was there was sent again"
    assert [request.status for request in hub.asked("PUT", weights, port="cdn")] == [None, None, 200]


def test_a_dropped_connection_and_parts(hub, client, large_folder):
    """The weights go in parts; one connection drops and one part is refused at first. The other parts go once."""
    hub.part_size = (large_folder / "model.safetensors").stat().st_size // 3 + 1
    weights = oid_of(large_folder / "model.safetensors")
    hub.cut(f"{weights}.part=00002", after_bytes=2 * MIB)
    hub.fail("PUT", f"{weights}.part=00003", status=503)
    client(hub, PUSH.format(folder=str(large_folder)))
    assert_arrived(hub, large_folder)
    sent = [(r.target[-5:], r.status) for r in hub.asked("PUT", weights, port="cdn")]
    assert sent == [("00001", 200), ("00002", None), ("00002", 200), ("00003", 503), ("00003", 200)]


def test_passing_trouble_at_every_step_is_outlasted(hub, client, folder):
    """huggingface_hub repeats preupload, LFS and PUT itself; creation and commit are repeated by this library."""
    hub.fail("POST", "/api/repos/create", status=503)
    hub.fail("POST", "/preupload/", status=502)
    hub.fail("POST", "/lfs/objects/batch", status=429, headers={"RateLimit": '"api";r=0;t=1'})
    hub.fail("PUT", oid_of(folder / "model.safetensors"), status=500)
    hub.fail("POST", "/verify", status=429, headers={"Retry-After": "1"})
    hub.fail("POST", "/commit/main", status=503)
    client(hub, PUSH.format(folder=str(folder)))
    assert_arrived(hub, folder)
    for pattern, status, wait_s in (("/lfs/objects/batch", 429, 2), ("/verify", 429, 2), ("/commit/main", 503, 1)):
        first, second = hub.asked("POST", pattern)[:2]
        assert (first.status, second.status) == (status, 200)
        assert second.at_s - first.at_s >= wait_s, f"{pattern} did not wait as asked"
