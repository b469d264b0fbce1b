"""A classifier that knows no grammar: what surface cues alone are worth."""

from collections.abc import Sequence


def ngram_predictions(
    texts: Sequence[str], labels: Sequence[str], test_texts: Sequence[str]
) -> list[str]:
    """Fits a logistic regression on character 1- to 5-grams and returns its labels for test texts.

    Works alike for scripts with and without spaces.
    """
    # Take seconds to import.
    import sklearn.feature_extraction.text
    import sklearn.linear_model
    import sklearn.pipeline

    model = sklearn.pipeline.make_pipeline(
        sklearn.feature_extraction.text.TfidfVectorizer(
            analyzer="char", ngram_range=(1, 5), min_df=2, sublinear_tf=True
        ),
        sklearn.linear_model.LogisticRegression(C=10.0, max_iter=1000),
    )
    model.fit(texts, labels)
    return model.predict(test_texts).tolist()
