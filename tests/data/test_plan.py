from itertools import islice

import pytest

from gfm_hf.data.decoding import Record
from gfm_hf.data.plan import EpochPlan, SampleKey
from gfm_hf.data.sources import ImageStream, ImageTable


class Rows:
    """The three calls that a stream makes of a dataset: shuffle, iterate, look up the column."""

    def __init__(self, length, order_seed=None):
        self.length = length
        self.order_seed = order_seed
        self.read = 0

    def shuffle(self, seed, buffer_size):
        self.order_seed = seed
        return self

    def __iter__(self):
        shift = self.order_seed % max(self.length, 1)
        for i in range(self.length):
            self.read += 1
            yield {"image": {"bytes": b"", "path": str((i + shift) % self.length)}}


def table(length):
    return ImageTable(length, lambda i: Record(i, str(i)), "digest", f"{length} images")


def stream(length):
    return ImageStream(Rows(length), "image", 0, 10, "digest", f"{length} images, streamed")


def take(source, count, **options):
    return list(islice(EpochPlan(source, **options), count))


def epoch_of(source, steps, world, accumulation, batch_size, epoch=0, **options):
    """All micro-batches of one epoch: [step][rank][micro-batch]."""
    ranks = [
        take(
            source(),
            steps * accumulation,
            batch_size=batch_size,
            rank=rank,
            world=world,
            accumulation=accumulation,
            epoch_start=epoch,
            **options,
        )
        for rank in range(world)
    ]
    return [[batches[s * accumulation : (s + 1) * accumulation] for batches in ranks] for s in range(steps)]


def names(keys):
    return [key.record.name for key in keys if key.record is not None]


SPLITS = [(1, 1, 12), (1, 3, 4), (2, 1, 6), (2, 2, 3), (3, 2, 2), (3, 1, 4), (1, 12, 1)]  # global batch 12


@pytest.mark.parametrize("source", [table, stream])
@pytest.mark.parametrize("length", [12, 24, 25, 29, 35, 5, 1])
@pytest.mark.parametrize("world, accumulation, batch_size", SPLITS)
def test_every_record_once_and_the_same_global_batches_for_any_split(source, length, world, accumulation, batch_size):
    steps = -(-length // 12)
    whole = epoch_of(lambda: source(length), steps, 1, 1, 12)
    split = epoch_of(lambda: source(length), steps, world, accumulation, batch_size)
    for one, many in zip(whole, split, strict=True):
        # micro-batch a of rank r is piece a * world + r of the global batch
        order = [name for a in range(accumulation) for r in range(world) for name in names(many[r][a])]
        assert order == names(one[0][0])
    assert sorted(name for step in split for rank in step for keys in rank for name in names(keys)) == sorted(
        map(str, range(length))
    )


@pytest.mark.parametrize("source", [table, stream])
@pytest.mark.parametrize("length", [24, 29, 26, 13])
@pytest.mark.parametrize("world, accumulation, batch_size", SPLITS)
def test_weighted_losses_average_to_the_mean_of_the_global_batch(source, length, world, accumulation, batch_size):
    steps = -(-length // 12)
    for step, ranks in enumerate(epoch_of(lambda: source(length), steps, world, accumulation, batch_size)):
        pieces = [keys for rank in ranks for keys in rank]
        losses = [[float(name) ** 2 for name in names(keys)] for keys in pieces]
        means = [sum(piece) / max(len(piece), 1) for piece in losses]
        weights = [keys[0].weight * len(piece) for keys, piece in zip(pieces, losses, strict=True)]
        weighted = [weight * mean for weight, mean in zip(weights, means, strict=True)]
        flat = [loss for piece in losses for loss in piece]
        assert len(flat) == min(12, length - 12 * step)
        assert sum(weighted) / (world * accumulation) == pytest.approx(sum(flat) / len(flat), rel=1e-12)
        sizes = [len(loss) for loss in losses]
        assert max(sizes) - min(sizes) <= 1 and max(sizes) <= batch_size


def test_empty_piece_is_one_filler_of_weight_zero():
    ranks = epoch_of(lambda: table(2), 1, 3, 2, 2)[0]
    assert [[len(names(keys)) for keys in rank] for rank in ranks] == [[1, 0], [1, 0], [0, 0]]
    assert ranks[2][0] == [SampleKey(0, None, 0.0, 0)]
    assert ranks[0][0][0].weight == 3.0  # 3 ranks * 2 micro-batches / 2 records


def test_full_micro_batch_has_weight_one():
    keys = take(table(64), 1, batch_size=8, world=2, accumulation=4)[0]
    assert keys[0].weight * len(keys) == 1.0


@pytest.mark.parametrize("source", [table, stream])
@pytest.mark.parametrize("drop_last", [False, True])
def test_start_anywhere_continues_the_run(source, drop_last):
    options = {"batch_size": 2, "rank": 1, "world": 2, "accumulation": 2, "seed": 3, "drop_last": drop_last}
    steps = 3 if drop_last else 4
    run = take(source(29), 2 * steps * 3, **options)
    for epoch, step in [(0, 0), (0, 1), (0, steps - 1), (0, steps), (1, 0), (1, 2), (2, 1)]:
        rest = run[2 * (epoch * steps + step) :]
        assert take(source(29), len(rest), epoch_start=epoch, step_start=step, **options) == rest
    assert [(key.epoch, key.step) for (key, *_) in run[::2]] == [(e, s) for e in range(3) for s in range(steps)]


def test_drop_last_leaves_out_the_smaller_batch_only():
    kept = [
        name
        for step in epoch_of(lambda: table(29), 2, 2, 1, 6, drop_last=True)
        for r in step
        for k in r
        for name in names(k)
    ]
    assert len(set(kept)) == 24
    assert take(table(29), 3, batch_size=12, drop_last=True)[2][0].epoch == 1


def test_order_is_a_permutation_of_seed_and_epoch():
    plain = [names(keys) for keys in take(table(40), 3, batch_size=40)]
    assert plain[0] != plain[1] and sorted(plain[0]) == sorted(plain[1])
    assert plain[0] != sorted(plain[0], key=int)
    assert [names(keys) for keys in take(table(40), 1, batch_size=40, seed=1)] != plain[:1]
    assert [names(keys) for keys in take(table(40), 1, batch_size=40, epoch_start=2)] == plain[2:]


def test_table_reads_only_this_ranks_records():
    seen = []
    source = ImageTable(24, lambda i: seen.append(i) or Record(i, str(i)), "digest", "24 images")
    batches = take(source, 3, batch_size=4, rank=1, world=2, step_start=0)
    assert sorted(seen) == sorted(int(name) for keys in batches for name in names(keys))
    seen.clear()
    take(source, 1, batch_size=4, rank=1, world=2, step_start=2)
    assert len(seen) == 4


def test_steps_per_epoch():
    assert EpochPlan(table(29), batch_size=3, world=2, accumulation=2).steps_per_epoch == 3
    assert EpochPlan(table(24), batch_size=3, world=2, accumulation=2).steps_per_epoch == 2
    assert EpochPlan(table(29), batch_size=3, world=2, accumulation=2, drop_last=True).steps_per_epoch == 2
    assert EpochPlan(stream(29), batch_size=3).steps_per_epoch is None


@pytest.mark.parametrize(
    "options",
    [{"batch_size": 0}, {"batch_size": 1, "world": 2, "rank": 2}, {"batch_size": 1, "accumulation": 0}]
    + [{"batch_size": 1, "step_start": -1}],
)
def test_impossible_plans_are_refused(options):
    with pytest.raises(ValueError, match="must be 1 or more"):
        EpochPlan(table(4), **options)


def test_start_beyond_the_epoch_is_refused():
    EpochPlan(table(4), batch_size=2, step_start=2)
    with pytest.raises(ValueError, match="2 steps, so none is number 3"):
        EpochPlan(table(4), batch_size=2, step_start=3)


def test_too_few_images_do_not_loop_for_ever():
    with pytest.raises(ValueError, match="smaller batch"):
        EpochPlan(table(4), batch_size=5, drop_last=True)
    for options in ({"batch_size": 5, "drop_last": True}, {"batch_size": 5, "drop_last": True, "step_start": 0}):
        with pytest.raises(ValueError, match="less than one batch"):
            take(stream(4), 1, **options)
    with pytest.raises(ValueError, match="less than one batch"):
        take(stream(0), 1, batch_size=1)
