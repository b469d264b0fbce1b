"""Predictions on disk: what each variant answered to each row, and what that is worth."""

import contextlib
import functools
import hashlib
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from langmerge_jax.adapters import Adapter
from langmerge_jax.data.examples import Example
from langmerge_jax.errors import InputError
from langmerge_jax.evaluation.predict import (
    ChoiceScorer,
    Generator,
    Weights,
    batches,
    of_adapters,
    of_base,
    rows_at_once,
)
from langmerge_jax.files import read_json, read_jsonl, write_jsonl
from langmerge_jax.lifecycle.journal import Journal
from langmerge_jax.lifecycle.run import Run
from langmerge_jax.lifecycle.stages import INPUTS, digest, digest_rows, is_current, making
from langmerge_jax.lifecycle.variants import Variant
from langmerge_jax.models.fold import fold
from langmerge_jax.models.stacking import spec_of
from langmerge_jax.progress import Progress
from langmerge_jax.tasks.task import CHOICE

logger = logging.getLogger(__name__)

# What only decides how outputs are scored.
SCORING = "scoring"
Answers = dict[int, dict[str, Any]]


class Answerer:
    """Answers with anything that stands on a run's base, keeping compiled programs and prompts.

    Args:
      run: gives base, task and rows.
    """

    def __init__(self, run: Run):
        self._run = run
        self.journal = Journal(run.home / "predictions" / ".journal")
        self._scorers: dict[tuple[tuple[int, ...], ...], ChoiceScorer] = {}

    def answer(
        self,
        variants: Mapping[str, Variant],
        inputs: Mapping[str, Any],
        split: str,
        finish: Callable[[str, dict[str, Answers]], None],
    ) -> None:
        """Answers a split's rows with several variants, from where a killed process stood.

        Variants of equal rank share their batches, `evaluate.variants_at_once` of them; those that
        are folded have the weights to themselves.

        Args:
          variants: by name.
          inputs: {name: what its answers are made from}.
          finish: called with a variant's name and {language: {row: answer}} once it is complete;
            the journal keeps the answers until the caller removes them.
        """
        keys = {name: journal_key(name, inputs[name]) for name in variants}
        left = {}
        # First those that only had to be written. What is left is then cut into the same batches
        # as before, so that the answers are the same to the bit.
        for name, variant in variants.items():
            found = self._journalled(keys[name], variant)
            if all(len(found[x]) == len(self._run.examples(x, split)) for x in found):
                finish(name, found)
            else:
                left[name] = variant
        total = sum(
            len(self._run.examples(x, split)) for v in left.values() for x in self._languages(v)
        )
        what = f"answer with {len(left)} variant" + "s" * (len(left) > 1)
        with Progress(what, total, "row") if left else contextlib.nullcontext() as progress:
            for names, weights in self._together(left):
                # Of one group all have the same languages.
                for language in self._languages(left[names[0]]):
                    of = {name: keys[name] for name in names}
                    self._answer(of, weights, language, split, progress.update)
                for name in names:
                    finish(name, self._journalled(keys[name], left[name]))

    def _languages(self, variant: Variant) -> tuple[str, ...]:
        return variant.languages or self._run.languages

    def _journalled(self, key: str, variant: Variant) -> dict[str, Answers]:
        return {x: self.journal.read(key, x) for x in self._languages(variant)}

    def _together(self, variants: Mapping[str, Variant]) -> Iterator[tuple[list[str], Weights]]:
        """Yields variants that can share a batch, with what stands on the base."""
        base, size = self._run.base, self._run.config.evaluate.variants_at_once
        if size < 1:
            raise InputError(f"evaluate.variants_at_once={size}: give 1 or more")
        waiting: dict[tuple, dict[str, Adapter]] = {}
        for name, variant in variants.items():
            top = variant.load()
            if top is None:
                yield [name], of_base(base)
            elif isinstance(top, Adapter):
                spec = spec_of([top])
                some = waiting.setdefault((spec.rank, spec.targets, variant.languages), {})
                some[name] = top
                if len(some) == size:
                    yield list(some), of_adapters(base, list(some.values()))
                    some.clear()
            else:
                yield [name], of_base(base, fold(base.params, top.items()))
        for some in waiting.values():
            if some:
                yield list(some), of_adapters(base, list(some.values()))

    def _answer(
        self,
        keys: Mapping[str, str],
        weights: Weights,
        language: str,
        split: str,
        done: Callable[[int], None],
    ) -> None:
        """Answers one language's rows with some variants, batch by batch, into the journal."""
        prompts = self.prompts(language, split)
        before = [self.journal.read(key, language) for key in keys.values()]
        call = self._caller(language)
        for rows in batches(
            prompts, rows_at_once(self._run.base, self._run.config.evaluate.batch_size, weights.n)
        ):
            if not all(row in found for found in before for row in rows):
                answers = call([prompts[row] for row in rows], weights)
                for key, some in zip(keys.values(), answers, strict=True):
                    self.journal.add(key, language, dict(zip(map(int, rows), some, strict=True)))
            done(len(rows) * len(keys))

    @functools.cache  # noqa: B019 (an answerer lives as long as its run)
    def prompts(self, language: str, split: str) -> list[tuple[int, ...]]:
        """Returns the prompts of a split's rows."""
        return self._run.task.prompts(self._run.tokenizer, self._run.examples(language, split))

    def _caller(
        self, language: str
    ) -> Callable[[Sequence[Sequence[int]], Weights], list[list[dict[str, Any]]]]:
        run, size = self._run, self._run.config.evaluate.batch_size
        if mode_of(run) != CHOICE:
            return self._generator
        options = tuple(map(tuple, run.task.options(run.tokenizer, language)))
        if options not in self._scorers:
            self._scorers[options] = ChoiceScorer(run.base, options, size, run.config.train.buckets)
        scorer, labels, words = self._scorers[options], run.task.labels, run.task.words(language)

        def answer(prompts, weights):
            return [
                [
                    {
                        "output": words[int(row.argmax())],
                        "log_likelihood": dict(zip(labels, map(float, row), strict=True)),
                    }
                    for row in scores
                ]
                for scores in scorer(prompts, weights)
            ]

        return answer

    @functools.cached_property
    def _generator(self) -> Generator:
        run = self._run
        return Generator(run.base, run.config.evaluate.batch_size, run.task.max_new_tokens)


def journal_key(name: str, inputs: Mapping[str, Any]) -> str:
    """Returns under what the journal has a variant; two may be made from the same."""
    return digest([name, inputs])[:16]


def mode_of(run: Run) -> str:
    """Returns how the run's outputs come about: `choice` or `generation`.

    Raises:
      InputError: if the task cannot be answered so.
    """
    mode = run.config.evaluate.mode or run.task.modes[0]
    if mode not in run.task.modes:
        raise InputError(
            f"evaluate.mode={mode!r}: {run.config.task.name} is answered by "
            f"{' or '.join(run.task.modes)}"
        )
    return mode


def common_inputs(run: Run, split: str) -> dict[str, Any]:
    """Returns what all predictions of a split are made from, whatever answers."""
    rows = {language: digest_rows(run.examples(language, split)) for language in run.languages}
    return {"task": run.asked, "rows": rows, SCORING: run.scoring}


def run_inputs(run: Run, split: str) -> dict[str, Any]:
    """Returns what all predictions of a split by the model are made from."""
    return common_inputs(run, split) | {"base": run.base_identity, "mode": mode_of(run)}


def predict(run: Run, answerer: Answerer, variants: Mapping[str, Variant]) -> None:
    """Answers the test rows with those variants that have not yet.

    Writes `predictions/<variant>/<language>.jsonl`: id, digest of the prompt, output, parsed,
    reference, scores, and for choices the log-likelihood of each label. If only the scoring has
    changed since, outputs are scored anew.
    """
    common = run_inputs(run, "test")
    inputs = {name: common | variant.inputs for name, variant in variants.items()}
    missing = {}
    for name, variant in variants.items():
        directory = run.predictions_directory(name)
        if is_current(directory, inputs[name]):
            continue
        if _answered(directory, inputs[name]):
            languages = variant.languages or run.languages
            answers = {x: _outputs(directory / f"{x}.jsonl") for x in languages}
            write_predictions(run, directory, inputs[name], answers)
        else:
            missing[name] = variant
    if len(missing) < len(variants):
        logger.info("predictions there already, skipped: %d", len(variants) - len(missing))
    if not missing:
        return
    keys = {name: journal_key(name, inputs[name]) for name in missing}
    answerer.journal.keep_only(keys.values())

    def finish(name: str, answers: dict[str, Answers]) -> None:
        prompts = {x: answerer.prompts(x, "test") for x in answers}
        write_predictions(run, run.predictions_directory(name), inputs[name], answers, prompts)
        answerer.journal.remove([keys[name]])

    answerer.answer(missing, inputs, "test", finish)


def write_predictions(
    run: Run,
    directory: pathlib.Path,
    inputs: Mapping[str, Any],
    answers: Mapping[str, Answers],
    prompts: Mapping[str, Sequence[Sequence[int]]] | None = None,
) -> None:
    """Scores a variant's answers to the test rows and writes them.

    Args:
      answers: {language: {row: answer}}; an answer has an `output`, and may have more.
      prompts: {language: token ids of each row's prompt}; an answer that has none of these, such
        as one that was made elsewhere, has its digest already, or no digest.
    """
    with making(directory, inputs) as work:
        for language, of in answers.items():
            examples = run.examples(language, "test")
            outputs = [of[i]["output"] for i in range(len(examples))]
            rows = []
            for i, found in enumerate(run.task.rows(examples, outputs)):
                row = {"id": examples[i].id}
                if prompts:
                    row["prompt"] = prompt_digest(prompts[language][i])
                rows.append(row | dict(of[i]) | found)
            write_jsonl(work / f"{language}.jsonl", rows)


def prompt_digest(prompt: Sequence[int]) -> str:
    """Returns a digest of a prompt's tokens, which tells whether two variants were asked alike."""
    return hashlib.sha256(np.asarray(prompt, np.int32).tobytes()).hexdigest()[:16]


def keep_rows(run: Run) -> None:
    """Writes `test/<language>.jsonl`: id, text, choices, reference and prompt of the test rows.

    The prompt is in words, for who wants outputs of another model to the same rows.
    """
    ids = {x: digest([e.id for e in run.examples(x, "test")]) for x in run.languages}
    inputs = common_inputs(run, "test") | {"ids": ids}
    if is_current(run.home / "test", inputs):
        return
    with making(run.home / "test", inputs) as directory:
        for language in run.languages:
            write_jsonl(
                directory / f"{language}.jsonl",
                (_row(run, example) for example in run.examples(language, "test")),
            )


def _row(run: Run, example: Example) -> dict[str, Any]:
    row: dict[str, Any] = {"id": example.id, "text": example.text}
    if example.choices:
        row["choices"] = example.choices
    return row | {"reference": example.target, "prompt": run.task.message(example)}


def _answered(directory: pathlib.Path, inputs: Mapping[str, Any]) -> bool:
    """Whether the outputs there are of these inputs, only scored otherwise."""
    path = directory / INPUTS
    if not path.exists():
        return False
    found = read_json(path)
    return digest(found | {SCORING: None}) == digest(dict(inputs) | {SCORING: None})


def _outputs(path: pathlib.Path) -> Answers:
    kept = ("prompt", "output", "log_likelihood")
    return {
        i: {key: row[key] for key in kept if key in row} for i, row in enumerate(read_jsonl(path))
    }
