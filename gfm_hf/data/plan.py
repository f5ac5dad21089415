"""Which record each rank sees in which micro-batch: exact for any number of ranks and any accumulation.

The order of an epoch depends on (seed, epoch) alone. It is cut into global batches, one per optimizer step, and each
of those into accumulation x world pieces, one per micro-batch. Nothing is repeated and nothing is dropped.
"""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler

from gfm_hf.data.decoding import Record
from gfm_hf.data.seeding import ORDER_STREAM, sample_rng
from gfm_hf.data.sources import ImageStream, ImageTable


class SampleKey(NamedTuple):
    """What a dataset needs to make one sample.

    Attributes:
        epoch: Pass over the data, from 0.
        record: The image; None in the filler of an empty micro-batch.
        weight: Share of the loss: world * accumulation / records in the global batch; 0 for a filler.
        step: Optimizer step inside the epoch, from 0.
    """

    epoch: int
    record: Record | None
    weight: float = 1.0
    step: int = 0


class EpochPlan(Sampler[list[SampleKey]]):
    """Endless batch sampler of one rank: epoch after epoch, step after step, `accumulation` micro-batches a step.

    A global batch is the next batch_size * world * accumulation records of the order; micro-batch a of rank r holds
    piece a * world + r of it. The last one of an epoch may be smaller: it is cut the same way into pieces whose sizes
    differ by one at most, and a piece without a record becomes one filler of weight 0. Averaged over ranks and
    micro-batches, weight * loss is then exactly the mean over the records of the global batch.

    Give it to `torch.utils.data.DataLoader(..., batch_sampler=plan)`, which then prefetches across the ends of epochs;
    do not let Accelerate prepare that loader, or it would deal the batches out a second time. Of a table, each rank
    reads its own records only; of a stream, each rank reads all bytes and decodes its own.

    Args:
        source: Where the records come from.
        batch_size: Records of a full micro-batch on one rank.
        rank: This process, from 0.
        world: Number of processes.
        accumulation: Micro-batches per optimizer step.
        seed: Seed of a table's order.
        epoch_start: Epoch to start in.
        step_start: Optimizer step of that epoch to start at; what lies before is not decoded.
        drop_last: Leave the smaller last global batch of each epoch out, as the authors do.

    Raises:
        ValueError: A size below 1, a rank outside the world, or a start that does not exist.
    """

    def __init__(
        self,
        source: ImageTable | ImageStream,
        batch_size: int,
        rank: int = 0,
        world: int = 1,
        accumulation: int = 1,
        seed: int = 0,
        epoch_start: int = 0,
        step_start: int = 0,
        drop_last: bool = False,
    ) -> None:
        if min(batch_size, world, accumulation) < 1 or not 0 <= rank < world or min(epoch_start, step_start) < 0:
            raise ValueError(
                f"batch_size {batch_size}, world {world} and accumulation {accumulation} must be 1 or more, rank {rank} "
                f"below world, and the start ({epoch_start}, {step_start}) 0 or more; check the batch size flags."
            )
        self.source = source
        self.rank = rank
        self.world = world
        self.accumulation = accumulation
        self.seed = seed
        self.epoch_start = epoch_start
        self.step_start = step_start
        self.drop_last = drop_last
        self.global_batch_size = batch_size * world * accumulation
        if self.steps_per_epoch == 0:
            raise ValueError(f"{source.description} fill no batch of {self.global_batch_size}; use a smaller batch.")
        if self.steps_per_epoch is not None and step_start > self.steps_per_epoch:
            raise ValueError(
                f"an epoch has {self.steps_per_epoch} steps, so none is number {step_start}; start earlier."
            )

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of one epoch; None for a stream, whose length is not known."""
        if isinstance(self.source, ImageStream):
            return None
        full, rest = divmod(len(self.source), self.global_batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        """Yield this rank's micro-batches without end."""
        epoch, first = self.epoch_start, self.step_start
        while True:
            for step, (size, pieces) in enumerate(self._steps(epoch, first), start=first):
                weight = self.world * self.accumulation / size
                for piece in pieces:
                    keys = [SampleKey(epoch, record, weight, step) for record in piece]
                    yield keys or [SampleKey(epoch, None, 0.0, step)]
            epoch, first = epoch + 1, 0

    def _steps(self, epoch: int, first: int) -> Iterator[tuple[int, list[list[Record]]]]:
        """Yield (records of the global batch, this rank's pieces of it) from step number first on."""
        if isinstance(self.source, ImageStream):
            yield from self._stream_steps(self.source, epoch, first)
        else:
            yield from self._table_steps(self.source, epoch, first)

    def _table_steps(self, table: ImageTable, epoch: int, first: int) -> Iterator[tuple[int, list[list[Record]]]]:
        order = sample_rng(self.seed, epoch, 0, ORDER_STREAM).permutation(len(table))
        size = self.global_batch_size
        for start in range(first * size, len(order), size):
            group = order[start : start + size]
            if len(group) == size or not self.drop_last:
                yield len(group), [[table[int(group[i])] for i in piece] for piece in self._pieces(len(group))]

    def _stream_steps(self, stream: ImageStream, epoch: int, first: int) -> Iterator[tuple[int, list[list[Record]]]]:
        records = stream.records(epoch)
        skipped = sum(1 for _ in islice(records, first * self.global_batch_size))
        steps = 0
        while group := list(islice(records, self.global_batch_size)):
            if len(group) == self.global_batch_size or not self.drop_last:
                steps += 1
                yield len(group), [[group[i] for i in piece] for piece in self._pieces(len(group))]
        if not skipped and not steps:
            raise ValueError(
                f"{stream.description} holds less than one batch; check the split, or use a smaller batch."
            )

    def _pieces(self, size: int) -> list[np.ndarray]:
        """Positions of this rank's micro-batches in a global batch of size records."""
        return np.array_split(np.arange(size), self.world * self.accumulation)[self.rank :: self.world]
