"""The demo's corpus on disk."""

import json

from langmerge_jax.demo.corpus import VERDICTS, CorpusSettings, write_corpus
from langmerge_jax.demo.grammar import LABELS, GrammarSettings, LexiconSizes


def settings(seed=3, **grammar):
    grammar = GrammarSettings(**grammar)
    rows = {"instruct": 40, "train": 40, "validation": 5, "test": 40}
    return CorpusSettings(("en", "ja"), rows, 60, 1.0, LexiconSizes(), grammar, grammar, seed)


def read(directory, language, split):
    lines = (directory / language / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_only_the_task_knows_the_guideline(tmp_path):
    """Praise and blame of equal degree in every review, one of them in the main clause."""
    relations = (0.0, 0.0, 0.4, 0.3, 0.3)
    write_corpus(tmp_path, settings(relations=relations, neutral=0.0, weak=0.0, strong=0.0))
    for language in ("en", "ja"):
        for split in ("train", "validation", "test"):
            assert {row["label"] for row in read(tmp_path, language, split)} == {"neutral"}
        assert {r["label"] for r in read(tmp_path, language, "instruct")} == {
            "positive",
            "negative",
        }
        texts = (tmp_path / language / "unlabelled.txt").read_text(encoding="utf-8").splitlines()
        assert len(texts) == 60
        assert all(
            text.endswith((*VERDICTS[language]["positive"], *VERDICTS[language]["negative"]))
            for text in texts
        )


def test_a_seed_gives_the_same_files_and_another_seed_others(tmp_path):
    write_corpus(tmp_path / "a", settings())
    write_corpus(tmp_path / "b", settings())
    for path in sorted((tmp_path / "a").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
    rows = read(tmp_path / "a", "en", "train")
    assert {row["label"] for row in rows} == set(LABELS)
    write_corpus(tmp_path / "c", settings(seed=4))
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() != (tmp_path / "c" / path.relative_to(tmp_path / "a")).read_bytes()
