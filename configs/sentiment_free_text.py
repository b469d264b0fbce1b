r"""The paper's guess why sentiment loses by merging, tested: sentences for answers, not labels.

  python -m langmerge_jax.experiment --config=configs/sentiment_free_text.py
  python -m langmerge_jax.experiment --config=configs/sentiment_experiment.py \
      --config.evaluate.mode=generation

Both train on the same rows and let the model write; in the second the three labels are the same
words in every language, in the first each language has sentences of its own, as summaries have. If
the label space is the reason, the merges lose less to `combined` in the first: compare `difference`
in comparisons.json of runs/sentiment_free_text with that of runs/sentiment_experiment, recipe by
recipe and language by language. The second without --config.evaluate.mode answers its rows again,
by choosing among the labels as the tables do; what writing them costs is the difference.

Cost: 2,500 steps of 5 x 8 rows and 12,500 of 8; device hours were not measured. Score: the paper
has no such experiment. The loss that it explains is about 15 points in English by a third party's
reading (docs/paper.md).
"""

from langmerge_jax.paper import experiment

ANSWERS = {
    "en": {
        "positive": "The writer sounds happy.",
        "neutral": "The writer sounds neither happy nor unhappy.",
        "negative": "The writer sounds unhappy.",
    },
    "de": {
        "positive": "Die Person klingt zufrieden.",
        "neutral": "Die Person klingt weder zufrieden noch unzufrieden.",
        "negative": "Die Person klingt unzufrieden.",
    },
    "fr": {
        "positive": "L'auteur semble content.",
        "neutral": "L'auteur ne semble ni content ni mécontent.",
        "negative": "L'auteur semble mécontent.",
    },
    "ja": {
        "positive": "書き手は満足しているようです。",
        "neutral": "書き手は満足でも不満でもないようです。",
        "negative": "書き手は不満を感じているようです。",
    },
    "zh": {
        "positive": "作者似乎感到满意。",
        "neutral": "作者似乎没有明显的好恶。",
        "negative": "作者似乎感到不满。",
    },
}


def get_config():
    config = experiment("sentiment")
    config.task.template = (
        "How does the writer of the text sound? Answer with one short sentence in the language of "
        "the text.\n\nText: {text}"
    )
    config.task.answers = ANSWERS
    config.task.max_new_tokens = 48
    config.evaluate.mode = "generation"
    return config
