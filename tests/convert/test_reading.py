"""Reading good weight files: every format, nothing before `read()`, and never by an unpickler."""

import pickle
import subprocess
import sys
import types
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from gfm_hf.convert.reading import CheckpointError, StoredTensor, open_checkpoint


FORMATS = ["zip", "legacy", "safetensors"]


@pytest.fixture
def weights():
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) for name, shape in {"a.weight": (3, 4), "a.bias": (4,)}.items()
    }


@pytest.fixture
def node():
    """The authors' kind of configuration; its module is gone again when a file is read."""
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    modules = {"yacs": types.ModuleType("yacs"), "yacs.config": module}
    sys.modules.update(modules)
    yield module.CfgNode
    for name in modules:
        sys.modules.pop(name, None)


def save(weights, path, form):
    if form == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=form == "zip")
    return path


def assert_read(checkpoint, wanted):
    """Each weight has the type, the shape and the numbers that were saved."""
    assert sorted(checkpoint.tensors) == sorted(wanted)
    for name, tensor in wanted.items():
        assert checkpoint.tensors[name] == StoredTensor(tuple(tensor.shape), tensor.dtype)
        found = checkpoint.read(name)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]
)
def test_plain_dictionary(tmp_path, weights, form, dtype):
    weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
    checkpoint = open_checkpoint(save(weights, tmp_path / f"w.{form}", form))
    assert checkpoint.kind == {"zip": "torch", "legacy": "torch (legacy)"}.get(form, form)
    assert checkpoint.config == {} and checkpoint.facts == {}
    assert_read(checkpoint, weights)


@pytest.mark.parametrize("form", ["zip", "legacy"])
@pytest.mark.parametrize("entry", ["model", "state_dict"])
def test_nested_weights_and_what_lies_beside_them(tmp_path, weights, form, entry):
    optimizer = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}}
    content = {entry: weights, "epoch": 7, "score": 0.5, "name": "run", "optimizer": optimizer}
    checkpoint = open_checkpoint(save(content, tmp_path / "w.pth", form))
    assert list(checkpoint.tensors) == list(weights)
    assert checkpoint.facts == {"epoch": 7, "score": 0.5, "name": "run"}
    assert_read(checkpoint, weights)
    assert set(checkpoint.optimizer) == {0} and set(checkpoint.optimizer[0]) == {"step", "exp_avg"}
    assert torch.equal(checkpoint.optimizer[0]["exp_avg"](), torch.ones(2))
    assert checkpoint.optimizer[0]["step"]() == 3


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_configuration_of_the_authors_is_read_without_their_package(tmp_path, weights, node, form):
    config = node({"MODEL": node({"SWIN": node({"WINDOW_SIZE": 6}), "TYPE": "swin"}), "ALPHA": 1.0})
    path = save({"model": weights, "config": config}, tmp_path / "w.pth", form)
    del sys.modules["yacs.config"], sys.modules["yacs"]
    checkpoint = open_checkpoint(path)
    assert checkpoint.config == {"MODEL": {"SWIN": {"WINDOW_SIZE": 6}, "TYPE": "swin"}, "ALPHA": 1.0}
    assert isinstance(checkpoint.config["MODEL"]["SWIN"], dict)
    assert_read(checkpoint, weights)
    assert not any(name.split(".")[0] == "yacs" for name in sys.modules)


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_later_protocols(tmp_path, weights, protocol):
    torch.save({"model": weights, "epoch": 1}, tmp_path / "w.pth", pickle_protocol=protocol)
    checkpoint = open_checkpoint(tmp_path / "w.pth")
    assert checkpoint.facts == {"epoch": 1} and list(checkpoint.tensors) == list(weights)


@pytest.mark.parametrize("start", [b"\x80\x02", b"PK"])
def test_safetensors_whose_length_looks_like_another_format(tmp_path, weights, start):
    """The first bytes are the length of the header: any."""
    path = tmp_path / "w.safetensors"
    wanted = int.from_bytes(start, "little")
    save_file(weights, path, {"pad": ""})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    save_file(weights, path, {"pad": "x" * (wanted - length)})
    short = wanted - int.from_bytes(path.read_bytes()[:8], "little")
    content = path.read_bytes()
    end = 8 + wanted - short
    path.write_bytes(wanted.to_bytes(8, "little") + content[8:end] + b" " * short + content[end:])
    assert path.read_bytes().startswith(start)
    assert_read(open_checkpoint(path), weights)


def test_state_dict_of_a_module(tmp_path):
    """An OrderedDict that carries versions in an attribute."""
    module = torch.nn.BatchNorm1d(3)
    torch.save(module.state_dict(), tmp_path / "w.pth")
    assert_read(open_checkpoint(tmp_path / "w.pth"), module.state_dict())


def test_parameters(tmp_path, weights):
    saved = {name: torch.nn.Parameter(tensor) for name, tensor in weights.items()}
    torch.save(saved, tmp_path / "w.pth")
    checkpoint = open_checkpoint(tmp_path / "w.pth")
    assert checkpoint.tensors["a.weight"] == StoredTensor((3, 4), torch.float32)
    assert_read(checkpoint, saved)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_views_that_share_a_storage(tmp_path, form):
    whole = torch.arange(24.0).view(4, 6)
    saved = {"rows": whole[1:3], "columns": whole[:, 2:5], "turned": whole.t(), "every second": whole[::2, ::3]}
    checkpoint = open_checkpoint(save(saved, tmp_path / "w.pth", form))
    assert [tensor.shape for tensor in checkpoint.tensors.values()] == [(2, 6), (4, 3), (6, 4), (2, 2)]
    assert_read(checkpoint, saved)


def test_scalars_and_tensors_without_numbers(tmp_path):
    saved = {"scalar": torch.tensor(5), "nothing": torch.zeros(0, 3)}
    torch.save(saved, tmp_path / "w.pth")
    assert_read(open_checkpoint(tmp_path / "w.pth"), saved)


def test_sets_beside_the_weights(tmp_path, weights):
    torch.save({"model": weights, "done": {1, 2}}, tmp_path / "w.pth")
    assert_read(open_checkpoint(tmp_path / "w.pth"), weights)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_no_unpickler_sees_the_file(tmp_path, weights, form, monkeypatch):
    path = save(weights, tmp_path / "w.pth", form)

    def refuse(*arguments, **options):
        raise AssertionError("an unpickler was asked")

    for owner, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(owner, name, refuse)
    assert_read(open_checkpoint(path), weights)


@pytest.mark.parametrize("form", ["zip", "legacy"])
def test_no_weight_is_read_before_it_is_asked_for(tmp_path, form):
    """Numbers that change behind the reader's back show when they are read: in an archive, by its checksum."""
    weights = {"first": torch.rand(100_000), "second": torch.rand(100_000)}  # more than a file's buffer
    path = save(weights, tmp_path / "w.pth", form)
    checkpoint = open_checkpoint(path)
    old, new = weights["second"].numpy().tobytes(), (weights["second"] + 1).numpy().tobytes()
    content = path.read_bytes()
    assert content.count(old) == 1
    path.write_bytes(content.replace(old, new))
    if form == "legacy":
        assert torch.equal(checkpoint.read("second"), weights["second"] + 1)
    else:
        with pytest.raises(CheckpointError, match="damaged"):
            checkpoint.read("second")
    assert torch.equal(checkpoint.read("first"), weights["first"])


def test_no_tensor_of_safetensors_is_read_before_it_is_asked_for(tmp_path, weights):
    path = save(weights, tmp_path / "w.safetensors", "safetensors")
    checkpoint = open_checkpoint(path)
    save({name: tensor + 1 for name, tensor in weights.items()}, path, "safetensors")
    assert torch.equal(checkpoint.read("a.bias"), weights["a.bias"] + 1)


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_read_is_a_copy(tmp_path, weights, form):
    path = save(weights, tmp_path / f"w.{form}", form)
    before = path.read_bytes()
    open_checkpoint(path).read("a.bias").zero_()
    assert path.read_bytes() == before


def _rewrite(path, change):
    """The same archive with other records."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(records)).split("/")[0]
    change(records, root)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in records.items():
            archive.writestr(name, data)


def _short(records, root):
    records[f"{root}/data/0"] = records[f"{root}/data/0"][:-4]


def _missing(records, root):
    del records[f"{root}/data/0"]


def _memo(records, root):
    records[f"{root}/data.pkl"] = records[f"{root}/data.pkl"][:-1] + b"(X\x01\x00\x00\x00xj\xff\xff\xff\x7fu."


def _operation(records, root):
    records[f"{root}/data.pkl"] = records[f"{root}/data.pkl"][:-1] + b"2."


def _code(records, root):
    records[f"{root}/data.pkl"] = pickle.dumps(subprocess.Popen, protocol=4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_short, "storage 0 should have"),
        (_missing, "not there"),
        (_memo, "cannot be followed"),
        (_operation, "instruction DUP"),
        (_code, r"subprocess\.Popen"),
    ],
)
def test_each_check_of_the_first_walk(tmp_path, weights, change, said):
    torch.save(weights, tmp_path / "w.pth")
    _rewrite(tmp_path / "w.pth", lambda records, root: None)
    assert_read(open_checkpoint(tmp_path / "w.pth"), weights)
    _rewrite(tmp_path / "w.pth", change)
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(tmp_path / "w.pth")


def test_a_path_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match="no.pth is no file"):
        open_checkpoint(tmp_path / "no.pth")
