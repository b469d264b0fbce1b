"""The languages of the demo. A new one is a file here and a line below."""

from langmerge_jax.demo.languages import de, en, es, fr, ja, zh
from langmerge_jax.demo.languages.base import Language

LANGUAGES: dict[str, Language] = {
    language.code: language
    for language in (
        en.LANGUAGE,
        de.LANGUAGE,
        fr.LANGUAGE,
        ja.LANGUAGE,
        zh.LANGUAGE,
        es.LANGUAGE,
    )
}
