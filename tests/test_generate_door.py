"""The generate door: what it prints, streams and refuses."""

import dataclasses
import json

import llama_models
import pytest

from langmerge_jax.adapters import save_adapter
from langmerge_jax.models.checkpoint import load_base, stop_tokens
from langmerge_jax.models.decoding import Decoder
from langmerge_jax.models.stacking import spec_of, stack
from langmerge_jax.parallel.mesh import make_mesh
from tests.doors import refused_line, run_door


def said(*flags):
    result = run_door("generate", *flags)
    assert result.returncode == 0, result.stderr
    assert "loaded in" in result.stderr
    return result.stdout


def test_once_upon_a_time(realdata):
    """The published model's own greedy sample, streamed."""
    folder = realdata / "stories260K"
    golden = json.loads((folder / "golden.json").read_text())
    found = said(
        f"--base={folder / 'hf'}",
        "--prompt=Once upon a time",
        f"--max_new_tokens={len(golden['greedy_ids_from_bos']) - 5}",
        "--temperature=0",
    )
    assert "Once upon a time" + found == golden["greedy_text"].lstrip() + "\n"


def test_transformers_tells_the_same_story(realdata):
    pytest.importorskip("torch", reason="torch is not installed (extra `dev`)")
    folder = realdata / "stories260K"
    golden = json.loads((folder / "golden.json").read_text())["greedy_ids_from_bos"]
    model = llama_models.model_of(folder / "hf")
    assert llama_models.greedy_of(model, golden[:5], len(golden) - 5) == golden[5:]


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    directory = tmp_path_factory.mktemp("generate") / "base"
    fields = llama_models.VARIANTS["llama 3.0"] | {"vocab_size": len(tokenizer)}
    llama_models.checkpoint(directory, fields)
    tokenizer.save_pretrained(directory)
    return load_base(str(directory), mesh=make_mesh())


def test_prompts_are_wrapped_by_the_chat_template_unless_told_otherwise(base):
    tokenizer = base.tokenizer
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Der Akku"}], tokenize=False, add_generation_prompt=True
    )
    for flags, ids in (
        ((), tokenizer.encode(chat, add_special_tokens=False)),
        (("--nochat",), tokenizer.encode("Der Akku")),
    ):
        tokens = Decoder(base, rows=1)([ids], max_new_tokens=30, stop=stop_tokens(base))[0]
        found = said(f"--base={base.name}", "--prompt=Der Akku", "--max_new_tokens=30", *flags)
        assert found == tokenizer.decode(tokens, skip_special_tokens=True) + "\n"


def test_several_prompts_go_together_through_an_adapter_that_names_its_base(
    base, random_adapter, tmp_path
):
    adapter = dataclasses.replace(random_adapter(base.config, seed=1), base=base.name)
    save_adapter(tmp_path / "adapter", adapter)
    texts = ["good", "画面は"]
    spec = spec_of([adapter])
    lora = stack({"": adapter}, base.config, spec, base.dtype)
    ids = [base.tokenizer.encode(text) for text in texts]
    tokens = Decoder(base, rows=2)(
        ids, max_new_tokens=12, stop=stop_tokens(base), lora=lora, spec=spec
    )
    found = said(
        f"--adapter={tmp_path / 'adapter'}",
        *(f"--prompt={text}" for text in texts),
        "--max_new_tokens=12",
        "--nochat",
    )
    answers = [base.tokenizer.decode(x, skip_special_tokens=True) for x in tokens]
    expected = "".join(f"--- {t}\n{a}\n" for t, a in zip(texts, answers, strict=True))
    assert found == expected


def test_bad_input_is_one_line(base, random_adapter, tmp_path):
    prompt, given = "--prompt=good", f"--base={base.name}"
    assert "--prompt is missing" in refused_line("generate", given)
    assert "--base is missing; give a model" in refused_line("generate", prompt)
    assert "temperature=-1" in refused_line("generate", given, prompt, "--temperature=-1")
    assert "attention='fast'" in refused_line("generate", given, prompt, "--attention=fast")
    assert "no such directory" in refused_line("generate", "--base=./nowhere", prompt)
    save_adapter(tmp_path / "nameless", random_adapter(base.config, seed=1))
    nameless = f"--adapter={tmp_path / 'nameless'}"
    assert "does not name its base" in refused_line("generate", nameless, prompt)
