"""Continues prompts with a base model, with or without an adapter.

  python -m langmerge_jax.generate --base=DIR --adapter=DIR --prompt="Once upon a time" \\
      --max_new_tokens=100 --temperature=0

streams the text to the terminal. The prompt is wrapped by the tokenizer's chat template if it has
one; --nochat gives it as it is. With several --prompt they are computed together, and each text is
printed when all are done. --base may be left out where the adapter names its base.
"""

import logging
import time

from absl import flags

from langmerge_jax import cli
from langmerge_jax.errors import InputError

_BASE = flags.DEFINE_string("base", None, "Model directory in Hugging Face layout, or hub name.")
_ADAPTER = flags.DEFINE_string("adapter", None, "Directory of a PEFT adapter.")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "Text to continue; may be given several times.")
_CHAT = flags.DEFINE_bool("chat", True, "Wrap prompts by the tokenizer's chat template.")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 256, "At most so many a prompt.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 takes the most likely token each time.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw among the likeliest tokens of this probability.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws.")
_DTYPE = flags.DEFINE_enum(
    "dtype", None, ["float32", "bfloat16"], "Of weights; float32 on a CPU, else bfloat16."
)
_ATTENTION = flags.DEFINE_string("attention", "auto", "auto, xla, blockwise, cudnn or splash.")

# Tokens between two looks at the text.
_EVERY = 8

logger = logging.getLogger(__name__)


def main() -> None:
    if not _PROMPT.value:
        raise InputError("--prompt is missing; give the text to continue")
    if not (_BASE.value or _ADAPTER.value):
        raise InputError("--base is missing; give a model directory or a hub name")
    # Imported here, so that --help and wrong flags answer at once.
    import pathlib

    import jax

    from langmerge_jax.adapters import load_adapter
    from langmerge_jax.models.checkpoint import load_base, stop_tokens
    from langmerge_jax.models.decoding import Decoder, Sampling
    from langmerge_jax.models.stacking import spec_of, stack
    from langmerge_jax.parallel.mesh import make_mesh

    sampling = Sampling(_TEMPERATURE.value, _TOP_P.value, _SEED.value)
    adapter = load_adapter(pathlib.Path(_ADAPTER.value)) if _ADAPTER.value else None
    name = _BASE.value or adapter.base
    if not name:
        raise InputError(f"--base is missing, and {_ADAPTER.value} does not name its base")
    start = time.monotonic()
    base = load_base(
        name,
        # Few rows cannot be spread over many devices; heads and weights can.
        mesh=make_mesh(data=1, tensor=-1),
        dtype=_DTYPE.value or ("float32" if jax.default_backend() == "cpu" else "bfloat16"),
        attention=_ATTENTION.value,
    )
    weights = {}
    if adapter:
        spec = spec_of([adapter])
        lora = stack({_ADAPTER.value: adapter}, base.config, spec, base.dtype)
        weights = {"spec": spec, "lora": lora}
    prompts = [_encode(base.tokenizer, text) for text in _PROMPT.value]
    logger.info("loaded in %.1f s", time.monotonic() - start)
    start = time.monotonic()
    streamed = _Streamed(base.tokenizer) if len(prompts) == 1 else None
    found = Decoder(base, rows=len(prompts))(
        prompts,
        max_new_tokens=_MAX_NEW_TOKENS.value,
        stop=stop_tokens(base),
        sampling=sampling,
        every=_EVERY if streamed else None,
        on_tokens=streamed or (lambda _: None),
        **weights,
    )
    seconds, count = time.monotonic() - start, sum(map(len, found))
    if streamed:
        streamed.end()
    else:
        for text, tokens in zip(_PROMPT.value, found, strict=True):
            print(f"--- {text}\n{base.tokenizer.decode(tokens, skip_special_tokens=True)}")
    logger.info("%d tokens in %.1f s, with compiling", count, seconds)


def _encode(tokenizer, text: str) -> list[int]:
    from langmerge_jax.data.encoding import as_prompt

    return as_prompt(tokenizer, text) if _CHAT.value else tokenizer.encode(text)


class _Streamed:
    """Prints a text as it grows."""

    def __init__(self, tokenizer):
        self._tokenizer, self._text, self._shown = tokenizer, "", 0

    def __call__(self, found: dict[int, list[int]]) -> None:
        self._text = self._tokenizer.decode(found[0], skip_special_tokens=True)
        # The bytes of a character may be spread over tokens.
        self._show(len(self._text.rstrip("\ufffd")))

    def end(self) -> None:
        self._show(len(self._text))
        print(flush=True)

    def _show(self, end: int) -> None:
        print(self._text[self._shown : end], end="", flush=True)
        self._shown = max(self._shown, end)


if __name__ == "__main__":
    cli.run(
        main, too_much="give fewer --prompt at a time, a lower --max_new_tokens or --dtype=bfloat16"
    )
