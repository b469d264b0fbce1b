"""The batches of a training and of its validation, as arrays."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jax.sharding import Mesh

from langmerge_jax.data.batching import bucket, pack, pad, steps_per_epoch, training_batches
from langmerge_jax.data.encoding import Encoded
from langmerge_jax.training.settings import TrainSettings
from langmerge_jax.training.step import learning_rate
from langmerge_jax.training.steps import Step


def steps_of(data: Mapping[str, Sequence[Encoded]], settings: TrainSettings) -> dict[str, int]:
    """Returns how many steps each adapter is trained, in the order of the names."""
    return {
        name: steps_per_epoch(len(data[name]), settings.batch_size) * settings.of(name).epochs
        for name in sorted(data)
    }


def adapter_steps(
    data: Mapping[str, Sequence[Encoded]], settings: TrainSettings, mesh: Mesh
) -> Iterator[Step]:
    """Yields the steps that train one adapter for each entry of `data` side by side."""
    total, of = steps_of(data, settings), {name: settings.of(name) for name in data}
    each = {name: steps_per_epoch(len(data[name]), settings.batch_size) for name in data}
    answers = max(len(e.answer) for d in data.values() for e in d)
    streams = {
        n: training_batches(
            data[n], rows=settings.batch_size, epochs=of[n].epochs, seed=settings.seed, name=n
        )
        for n in total
    }
    for number in range(max(total.values())):
        live = [n for n in total if number < total[n]]
        groups = [next(streams[n]) for n in live]
        arrays = _lay_out(groups, settings, answers, mesh)
        yield Step(
            number=number,
            names=live,
            rates=[
                learning_rate(number, total[n], peak=of[n].learning_rate, warmup=of[n].warmup)
                for n in live
            ],
            length=arrays["tokens"].shape[-1],
            arrays=arrays,
            tokens={n: sum(map(len, group)) for n, group in zip(live, groups, strict=True)},
            ids={n: [e.id for e in group] for n, group in zip(live, groups, strict=True)},
            ended=[n for n in live if (number + 1) % each[n] == 0],
            lengths=[len(e) for group in groups for e in group],
        )


def _lay_out(
    groups: Sequence[Sequence[Encoded]], settings: TrainSettings, answers: int, mesh: Mesh
) -> dict[str, np.ndarray]:
    """Arrays of one batch of each adapter; answers have at most so many tokens."""
    whole, lengths = settings.loss == "all", settings.lengths
    if not settings.packing:
        length = bucket(max(len(e) for group in groups for e in group), lengths)
        alone = [[[e] for e in group] for group in groups]
        targets = length if whole else answers
        return pad(alone, length, targets, settings.batch_size, whole=whole)
    length = lengths[-1]
    packed = [pack(group, length) for group in groups]
    # Few numbers of rows, as each is compiled, and such that the devices share them evenly.
    rows = mesh.shape["data"] * mesh.shape["fsdp"]
    while rows < max(map(len, packed)):
        rows *= 2
    targets = length if whole else min(length, answers * settings.batch_size)
    return pad(packed, length, targets, rows, whole=whole, packed=True)


def validation_batches(
    data: Sequence[Encoded], settings: TrainSettings
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the rows of one adapter as batches of one group, those of similar length together."""
    whole, rows = settings.loss == "all", settings.batch_size
    answers = max(len(e.answer) for e in data)
    ordered = sorted(data, key=len)
    for start in range(0, len(ordered), rows):
        group = ordered[start : start + rows]
        length = bucket(len(group[-1]), settings.lengths)
        yield pad([[[e] for e in group]], length, length if whole else answers, rows, whole=whole)
