"""Generation: stops, mixed lengths, draws, adapters in one batch, and few compilations."""

import json

import llama_models
import numpy as np
import pytest

from langmerge_jax.adapters import load_adapter
from langmerge_jax.errors import InputError
from langmerge_jax.models.checkpoint import load_base
from langmerge_jax.models.decoding import Decoder, Sampling
from langmerge_jax.models.stacking import spec_of, stack
from langmerge_jax.parallel.mesh import make_mesh
from tests.models.test_llama_parity import our_logits

NAME = "llama 3.1"
FIELDS = llama_models.VARIANTS[NAME]


@pytest.fixture(scope="module")
def base(tmp_path_factory, tokenizer):
    directory = llama_models.checkpoint(tmp_path_factory.mktemp("decoding") / "base", FIELDS)
    tokenizer.save_pretrained(directory)
    return load_base(str(directory), mesh=make_mesh())


@pytest.fixture(scope="module")
def prompts():
    tokens = llama_models.tokens(FIELDS, rows=7)
    return [row[:n].tolist() for row, n in zip(tokens, (5, 50, 1, 33, 31, 8, 90), strict=True)]


def step_by_step(base, prompt, count, adapters=()):
    """The most likely continuation, with the whole sequence computed anew for every token."""
    sequence = list(prompt)
    for _ in range(count):
        # One length for all, so that one program serves; what is behind does not count.
        padded = np.zeros(128, np.int32)
        padded[: len(sequence)] = sequence
        logits = our_logits(base, padded[None, None], adapters)
        sequence.append(int(logits[0, 0, len(sequence) - 1].argmax()))
    return sequence[len(prompt) :]


@pytest.mark.parametrize("apart", [True, False], ids=["layers apart", "layers scanned"])
def test_rows_of_any_length_get_what_each_gets_alone(base, prompts, apart):
    together = Decoder(base, rows=4, apart=apart)(prompts, max_new_tokens=20)
    assert together == [Decoder(base, rows=1)([x], max_new_tokens=20)[0] for x in prompts]
    for number in (1, 2):
        assert together[number] == step_by_step(base, prompts[number], 20)


def test_a_continuation_ends_before_its_stop_token(base, prompts):
    free = Decoder(base, rows=4)(prompts, max_new_tokens=20)
    stop = [free[0][3], free[1][7]]
    found = Decoder(base, rows=4)(prompts, max_new_tokens=20, stop=stop)
    for tokens, whole in zip(found, free, strict=True):
        ends = [i for i, token in enumerate(whole) if token in stop]
        assert tokens == whole[: ends[0] if ends else 20]
    assert len(found[0]) <= 3


def test_the_loop_ends_with_the_last_row(base, prompts):
    """Rows that are done are not waited for: the looks at the text tell how far it went."""
    first = Decoder(base, rows=1)(prompts[:1], max_new_tokens=1)[0]
    looks = []
    Decoder(base, rows=1)(
        prompts[:1], max_new_tokens=100, stop=first, every=10, on_tokens=looks.append
    )
    assert looks == [{0: []}]
    looks.clear()
    found = Decoder(base, rows=2)(prompts[:2], max_new_tokens=25, every=10, on_tokens=looks.append)
    assert [len(x[0]) for x in looks] == [1, 11, 21, 25]
    assert all(look[i] == found[i][: len(look[i])] for look in looks for i in look)


def test_few_programs_are_compiled(base, prompts):
    decoder = Decoder(base, rows=2)
    decoder(prompts[:2], max_new_tokens=20)
    assert decoder.compiled == 2
    # Other prompts, lengths, limits, temperatures and seeds in the same rooms: nothing new.
    for count, temperature in ((17, 0.0), (64, 0.7), (33, 2.0)):
        sampling = Sampling(temperature, 0.9, seed=count)
        decoder([x[:60] for x in prompts[:2]], max_new_tokens=count, sampling=sampling)
    assert decoder.compiled == 2
    # Also prompts of up to 16, 32 and 96 tokens.
    decoder(prompts, max_new_tokens=20)
    assert decoder.compiled == 8


def test_draws_follow_the_distribution(base, prompts):
    """Three thousand first tokens against the softmax of the logits."""
    prompt = prompts[1]
    logits = our_logits(base, np.array(prompt)[None, None])[0, 0, -1].astype(np.float64)
    found = Decoder(base, rows=3000)(
        [prompt] * 3000, max_new_tokens=1, sampling=Sampling(1.7, seed=5)
    )
    counts = np.bincount([x[0] for x in found], minlength=len(logits))
    likelihood = np.exp(logits / 1.7)
    likelihood /= likelihood.sum()
    chi_square = np.sum((counts - 3000 * likelihood) ** 2 / (3000 * likelihood))
    degrees = len(logits) - 1
    assert abs(chi_square - degrees) < 5 * np.sqrt(2 * degrees)


def test_top_p_draws_among_the_fewest_that_reach_it(base, prompts):
    prompt, top_p = prompts[1], 0.6
    logits = our_logits(base, np.array(prompt)[None, None])[0, 0, -1].astype(np.float64)
    likelihood = np.exp(logits) / np.exp(logits).sum()
    order = np.argsort(-likelihood)
    nucleus = order[: int(np.searchsorted(np.cumsum(likelihood[order]), top_p)) + 1]
    found = Decoder(base, rows=2000)(
        [prompt] * 2000, max_new_tokens=1, sampling=Sampling(1.0, top_p)
    )
    assert {x[0] for x in found} == set(nucleus.tolist())


def test_what_is_drawn_depends_on_seed_and_place_not_on_the_batch(base, prompts):
    def draw(rows, seed=0, some=prompts):
        return Decoder(base, rows=rows)(some, max_new_tokens=12, sampling=Sampling(1.0, 0.9, seed))

    first = draw(4)
    assert draw(7) == first
    assert draw(4, some=prompts[:3]) == first[:3]
    assert draw(4, seed=1) != first
    twice = draw(2, some=[prompts[0]] * 2)
    assert twice[0] != twice[1]


def test_prompts_of_several_adapters_share_a_batch(base, prompts, tmp_path):
    adapters = []
    for rank in (4, 2):
        path = llama_models.write_adapter(tmp_path / str(rank), FIELDS, rank=rank)
        adapters.append(load_adapter(path))
    spec = spec_of(adapters)
    lora = stack(dict(zip("ab", adapters, strict=True)), base.config, spec, base.dtype)
    of_prompts = [0, 1, 1, 0, 1, 1, 0]
    decoder = Decoder(base, rows=2)
    found = decoder(prompts, max_new_tokens=10, lora=lora, spec=spec, adapters=of_prompts)
    for number in (0, 1, 6):
        alone = step_by_step(base, prompts[number], 10, [adapters[of_prompts[number]]])
        assert found[number] == alone
    assert found[1] != Decoder(base, rows=1)(prompts[1:2], max_new_tokens=10)[0]


def test_what_cannot_be_generated_is_refused(base):
    for options, words in (
        ({"prompts": [[3], []]}, "prompt 1 is empty"),
        ({"prompts": [[3], [4, 9999]]}, "prompt 1: the model has no token 9999, it has"),
        ({"prompts": [[-1]]}, "prompt 0: the model has no token -1"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"every": -1}, "every=-1"),
        ({"adapters": [0, 0]}, "2 adapters for 1 prompts"),
        ({"adapters": [1]}, "adapter 1: there are 0 to 0"),
    ):
        with pytest.raises(InputError, match=words):
            Decoder(base, rows=1)(**{"prompts": [[3]], "max_new_tokens": 3} | options)
    for given, words in (
        ((-1.0,), "temperature=-1"),
        ((1.0, 0.0), "top_p=0"),
        ((1.0, 2), "top_p"),
        ((1.0, 1.0, -1), "seed=-1"),
        ((1.0, 1.0, 2**32), "seed=4294967296"),
    ):
        with pytest.raises(InputError, match=words):
            Sampling(*given)
    assert Decoder(base, rows=1)([], max_new_tokens=3) == []


def test_the_smallest_nucleus_and_the_largest_seed_are_taken(base, prompts):
    greedy = Decoder(base, rows=2)(prompts[:2], max_new_tokens=3)
    smallest = Sampling(temperature=1.0, top_p=1e-45, seed=2**32 - 1)
    assert Decoder(base, rows=2)(prompts[:2], max_new_tokens=3, sampling=smallest) == greedy


def test_the_published_model_tells_its_story(realdata):
    folder = realdata / "stories260K"
    golden = json.loads((folder / "golden.json").read_text())["greedy_ids_from_bos"]
    story = load_base(str(folder / "hf"), mesh=make_mesh())
    found = Decoder(story, rows=1)([golden[:5]], max_new_tokens=len(golden) - 5)
    assert found == [golden[5:]]
