"""Data sets: pushed as Parquet, read back whole and as a stream."""


def test_a_data_set_there_and_back(hub, client):
    source = """
from datasets import Dataset, load_dataset
rows = {"image_id": list(range(500)), "values": [[i, i + 1] for i in range(500)]}
Dataset.from_dict(rows).push_to_hub("owner/scenes", num_shards=2)
whole = load_dataset("owner/scenes", split="train")
stream = load_dataset("owner/scenes", split="train", streaming=True)
assert whole.to_dict() == rows
say([row["image_id"] for row in stream])
"""
    assert client(hub, source).value == list(range(500))
    files = set(hub.files("owner/scenes", kind="dataset"))
    assert files >= {"README.md", "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"}
    ranges = [r for r in hub.requests if r.port == "cdn" and r.method == "GET" and "range" in r.headers]
    assert ranges and {request.status for request in ranges} == {206}
