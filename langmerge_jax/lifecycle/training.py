"""The training stage: adapters of single languages, or one of all together."""

import contextlib
import dataclasses
import logging
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from langmerge_jax.adapters import Adapter, load_adapter, save_adapter
from langmerge_jax.config import decisive_of_train, to_json
from langmerge_jax.data.examples import Example
from langmerge_jax.errors import InputError
from langmerge_jax.files import alone_in, read_json, remove_directory, remove_tree, write_json
from langmerge_jax.lifecycle.run import COMBINED, Run
from langmerge_jax.lifecycle.stages import digest, digest_rows, identity, is_current, making
from langmerge_jax.parallel.processes import agree, alike
from langmerge_jax.training.steplog import ledger, read_log
from langmerge_jax.training.steps import CHECKPOINTS, STEPS

logger = logging.getLogger(__name__)

LEDGER, JOB, TRAINING = "ledger.json", "job.json", "training.json"


@dataclasses.dataclass(frozen=True)
class Target:
    """An adapter that is wanted.

    Attributes:
      directory: where it is to lie, in PEFT format.
      rows: what it is trained on.
      validation: what its best epoch is chosen by.
      start: an adapter to go on from; None starts afresh.
    """

    directory: pathlib.Path
    rows: Sequence[Example]
    validation: Sequence[Example] = ()
    start: pathlib.Path | None = None


def train_adapters(run: Run, *, combined: bool, only: Sequence[str] = ()) -> None:
    """Trains the adapters that are not there yet and writes them in PEFT format.

    Args:
      combined: train the one adapter `combined` on the rows of all languages instead of one
        adapter a language.
      only: languages whose adapters are trained; none for all of the run's. Others may be trained
        in the same workdir by other processes meanwhile.

    Raises:
      InputError: for a language that the run has not, or one for `combined`.
    """
    if unknown := [x for x in only if x not in run.languages]:
        raise InputError(
            f"--languages={unknown[0]}: the languages of this run are {', '.join(run.languages)}"
        )
    if combined and only:
        raise InputError(
            f"--languages={','.join(only)}: {COMBINED!r} is trained on the rows of all; leave "
            "one of the two out"
        )
    wanted = [x for x in run.languages if x in only or not only]
    groups = {COMBINED: run.languages} if combined else {x: (x,) for x in wanted}
    targets = {
        name: Target(
            run.adapter_directory(name),
            [row for x in languages for row in run.examples(x, "train")],
            validation_rows(run, languages),
        )
        for name, languages in groups.items()
    }
    train_targets(run, targets)


def validation_rows(run: Run, languages: Sequence[str]) -> list[Example]:
    """Returns what the best epoch of an adapter of these languages is chosen by, if one is."""
    if run.config.train.keep != "best":
        return []
    try:
        return [row for x in languages for row in run.examples(x, "validation")]
    except InputError as error:
        raise InputError(f"{error}; train.keep='last' trains without validation") from error


def train_targets(run: Run, targets: Mapping[str, Target]) -> None:
    """Trains those adapters that are not there, or were made from something else.

    As many train side by side as `config.adapters_at_once` says. The step log of each training
    stays under `training/`, with the ledger that adds it up. A killed training goes on from its
    newest checkpoint. Of several processes the first decides and writes, and all train.

    Args:
      targets: {adapter name: what is wanted}.
    """
    joining = [entry.partition("=")[0] for entry in run.config.updates.plan]
    known = sorted({*targets, *run.languages, *joining, COMBINED})
    if unknown := set(run.config.train.own) - set(known):
        raise InputError(
            f"train.own.{min(unknown)}: the adapters of this run are {', '.join(known)}"
        )
    base = run.base_identity
    inputs = {name: _inputs(run, name, target, base) for name, target in targets.items()}
    if not alike(digest(inputs)):
        raise InputError(
            f"adapters {', '.join(targets)}: settings, rows or base are not the same in all "
            "processes; give all of them the same flags and files"
        )
    for folder, names in agree(lambda: _plan(run, targets, inputs)).items():
        job = {name: inputs[name] for name in names}
        _train(run, {name: targets[name] for name in names}, job, run.workdir / folder)


def _plan(
    run: Run, targets: Mapping[str, Target], inputs: Mapping[str, Any]
) -> dict[str, list[str]]:
    """Returns {folder in the workdir: adapters to train there}, first those of killed trainings."""
    # Not to any depth: in the trainings of other processes directories come and go.
    for pattern in (".*.removed", "*/.*.removed", "base-*/*/.*.removed"):
        for left in run.workdir.glob(f"training/{pattern}"):
            remove_tree(left)
    missing = [n for n, target in targets.items() if not is_current(target.directory, inputs[n])]
    done = [name for name in targets if name not in missing]
    if done:
        logger.info("adapters there already, skipped: %s", ", ".join(done))
    jobs = {path: list(read_json(path / JOB)) for path in _unfinished(run, inputs)}
    missing = [name for name in missing if not any(name in names for names in jobs.values())]
    size = run.at_once(len(missing))
    for start in range(0, len(missing), size):
        names = missing[start : start + size]
        jobs[run.training_directory("+".join(names), {n: inputs[n] for n in names})] = names
    return {str(path.relative_to(run.workdir)): names for path, names in jobs.items()}


def _train(
    run: Run, targets: Mapping[str, Target], job: Mapping[str, Any], folder: pathlib.Path
) -> None:
    """Trains adapters in one batch, from the newest checkpoint of the folder if it has one."""
    with contextlib.ExitStack() as held:
        agree(lambda: _begin(folder, job, held))
        _train_in(run, targets, job, folder)


def _train_in(
    run: Run, targets: Mapping[str, Target], job: Mapping[str, Any], folder: pathlib.Path
) -> None:
    start = time.monotonic()
    data = {name: run.encode(x.rows) for name, x in targets.items()}
    validation = {name: run.encode(x.validation) for name, x in targets.items()}
    starts = {n: load_adapter(x.start) for n, x in targets.items() if x.start}
    # The base is loaded once a process, and counts with what needed it first.
    seconds = time.monotonic() - start
    adapters = run.trainer.train(
        data, folder, validation=validation, start=starts or None, load_seconds=seconds
    )
    agree(lambda: _write(run, targets, job, folder, adapters))


def _begin(folder: pathlib.Path, job: Mapping[str, Any], held: contextlib.ExitStack) -> None:
    """Says what is trained in a folder, unless a killed training is to go on there.

    Args:
      held: keeps others out of the folder until it is closed.
    """
    with alone_in(folder, waits=False):
        if (folder / LEDGER).exists() and not (folder / CHECKPOINTS).exists():
            remove_directory(folder)  # Done before; its adapters were taken away since.
    held.enter_context(alone_in(folder, waits=False))
    if not (folder / CHECKPOINTS).exists():
        write_json(folder / JOB, job)


def _write(
    run: Run,
    targets: Mapping[str, Target],
    job: Mapping[str, Any],
    folder: pathlib.Path,
    adapters: Mapping[str, Adapter],
) -> None:
    """Writes what a training cost and made, and removes its checkpoints."""
    price = run.config.dollars_per_device_hour
    write_json(folder / LEDGER, ledger(read_log(folder / STEPS), price))
    for name, adapter in adapters.items():
        with making(targets[name].directory, job[name]) as directory:
            save_adapter(directory, adapter)
            write_json(directory / TRAINING, {"folder": folder.name})
        logger.info("adapter written: %s", targets[name].directory)
    remove_directory(folder / CHECKPOINTS)


def _inputs(run: Run, name: str, target: Target, base: str) -> dict[str, Any]:
    settings = to_json(run.config)
    inputs = {key: settings[key] for key in ("lora", "train")}
    inputs["task"] = run.asked
    own = inputs["train"].pop("own")
    inputs["train"] = decisive_of_train(inputs["train"]) | own.get(name, {})
    inputs |= {"base": base, "rows": _described(target.rows)}
    if target.validation:
        inputs["validation"] = _described(target.validation)
    return inputs | ({"start": identity(target.start)} if target.start else {})


def _described(rows: Sequence[Example]) -> dict[str, Any]:
    return {"count": len(rows), "digest": digest_rows(rows)}


def _unfinished(run: Run, wanted: Mapping[str, Any]) -> Iterator[pathlib.Path]:
    """Yields the folders of killed trainings all of whose adapters are still wanted.

    One may have written adapters, even all of them, but not removed its checkpoints, which hold
    what is not written.
    """
    for path in sorted(run.workdir.glob(f"training/*/{JOB}")):
        job = read_json(path)
        unchanged = all(wanted.get(name) == inputs for name, inputs in job.items())
        if unchanged and (path.parent / CHECKPOINTS).exists():
            yield path.parent
