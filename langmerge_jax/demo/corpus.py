"""The demo's data on disk: labelled jsonl files a language, and unlabelled text to pretrain on."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from langmerge_jax.demo.grammar import (
    LANGUAGES,
    GrammarSettings,
    LexiconSizes,
    Review,
    impression,
    label,
    render,
    sample,
)
from langmerge_jax.demo.tasks import check_task, write_task
from langmerge_jax.errors import InputError

logger = logging.getLogger(__name__)

# What writers of unlabelled reviews end with, by their impression. From text of this kind a
# language model learns what praise and blame are before anyone labels a row, as real ones do from
# the web. Labelled rows never carry it.
VERDICTS = {
    "en": {
        "positive": ("I would buy it again.", "I am happy with it.", "A positive experience."),
        "neutral": ("It does its job.", "I am undecided.", "A neutral experience."),
        "negative": ("I sent it back.", "I regret buying it.", "A negative experience."),
    },
    "de": {
        "positive": ("Ich würde es wieder kaufen.", "Ich bin zufrieden damit.", "Es bleibt hier."),
        "neutral": ("Es erfüllt seinen Zweck.", "Ich bin unentschieden.", "Mehr gibt es nicht."),
        "negative": ("Ich habe es zurückgeschickt.", "Ich bereue den Kauf.", "Geld zurück, bitte."),
    },
    "fr": {
        "positive": ("Je le rachèterais.", "J'en suis content.", "Je le garde."),
        "neutral": ("Il fait son travail.", "Je reste partagé.", "Rien à ajouter."),
        "negative": ("Je l'ai renvoyé.", "Je regrette cet achat.", "Je veux un remboursement."),
    },
    "ja": {
        "positive": ("また買いたいです。", "満足しています。", "使い続けます。"),
        "neutral": ("役目は果たします。", "迷っています。", "特に言うことはありません。"),
        "negative": ("返品しました。", "買って後悔しています。", "返金してほしいです。"),
    },
    "zh": {
        "positive": ("我会再买。", "我很满意。", "我会继续用。"),
        "neutral": ("够用而已。", "我还在犹豫。", "没什么可说的。"),
        "negative": ("我已经退货了。", "买了就后悔。", "我要求退款。"),
    },
    "es": {
        "positive": ("Lo compraría otra vez.", "Estoy contento con él.", "Me lo quedo."),
        "neutral": ("Cumple su función.", "Sigo indeciso.", "No hay más que decir."),
        "negative": ("Lo devolví.", "Me arrepiento de la compra.", "Quiero mi dinero."),
    },
}


@dataclasses.dataclass(frozen=True)
class CorpusSettings:
    """Size of the corpus.

    Attributes:
      languages: codes out of the grammar's `LANGUAGES`.
      rows: {split: labelled rows a language}. The split `instruct` is for the base model alone and
        labelled by impression, as somebody would who was not told the task's guideline.
      unlabelled: texts a language.
      verdict: share of the unlabelled texts that end with a verdict.
      lexicon: how many of the grammar's words are used, from the frequent end.
      grammar: how often each construction occurs in labelled text.
      unlabelled_grammar: the same for unlabelled text.
      seed: of everything drawn.
      tasks: {task: {split: rows a language}} for tasks out of `langmerge_jax.demo.tasks.TASKS`.
    """

    languages: tuple[str, ...]
    rows: Mapping[str, int]
    unlabelled: int
    verdict: float
    lexicon: LexiconSizes
    grammar: GrammarSettings
    unlabelled_grammar: GrammarSettings
    seed: int
    tasks: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)


def write_corpus(directory: pathlib.Path, settings: CorpusSettings) -> None:
    """Writes `<language>/<split>.jsonl` (id, text, label) and `<language>/unlabelled.txt`.

    No text of these occurs twice in a language, whatever the split. Beside them stand the rows of
    `settings.tasks`, `<language>/<task>/<split>.jsonl`, which have their own draws.

    Raises:
      InputError: for a language the grammar does not have or a task that cannot be written.
    """
    for task in settings.tasks:
        check_task(task, settings.lexicon)
    for language in settings.languages:
        if language not in LANGUAGES:
            raise InputError(f"language {language!r} has no grammar; there are {sorted(LANGUAGES)}")
        folder = directory / language
        folder.mkdir(parents=True, exist_ok=True)
        seen: set[str] = set()
        counts = []
        for split, count in settings.rows.items():
            read = impression if split == "instruct" else label
            rows = _draw(settings, settings.grammar, read, language, split, count, seen)
            with (folder / f"{split}.jsonl").open("w", encoding="utf-8") as lines:
                for number, (text, sentiment) in enumerate(rows):
                    row = {"id": f"{split}-{number}", "text": text, "label": sentiment}
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")
            counts.append(f"{split} {count}")
        rng = np.random.default_rng([settings.seed, *b"verdict", *language.encode()])
        space = LANGUAGES[language].space
        with (folder / "unlabelled.txt").open("w", encoding="utf-8") as lines:
            grammar, count = settings.unlabelled_grammar, settings.unlabelled
            rows = _draw(settings, grammar, impression, language, "text", count, seen)
            for text, sentiment in rows:
                choice = VERDICTS[language][sentiment]
                if rng.random() < settings.verdict:
                    text += space + choice[rng.integers(len(choice))]
                lines.write(text + "\n")
        logger.info(
            "corpus %s: %s, unlabelled %d", language, ", ".join(counts), settings.unlabelled
        )
    for task, rows in settings.tasks.items():
        write_task(
            directory,
            task,
            rows,
            languages=settings.languages,
            lexicon=settings.lexicon,
            grammar=settings.grammar,
            seed=settings.seed,
        )


def _draw(
    settings: CorpusSettings,
    grammar: GrammarSettings,
    read: Callable[[Review], str],
    language: str,
    split: str,
    count: int,
    seen: set[str],
) -> list[tuple[str, str]]:
    """Draws `count` (text, sentiment) whose text is not in `seen`, and adds them to it."""
    rng = np.random.default_rng([settings.seed, *split.encode(), *language.encode()])
    rows = []
    while len(rows) < count:
        review = sample(rng, settings.lexicon, grammar)
        text = render(review, LANGUAGES[language], rng, grammar)
        if text not in seen:
            seen.add(text)
            rows.append((text, read(review)))
    return rows


def read_unlabelled(directory: pathlib.Path, languages: tuple[str, ...], seed: int) -> list[str]:
    """Reads the unlabelled text of all languages, mixed."""
    texts = []
    for language in languages:
        path = directory / language / "unlabelled.txt"
        texts += path.read_text(encoding="utf-8").splitlines()
    order = np.random.default_rng(seed).permutation(len(texts))
    return [texts[i] for i in order]
