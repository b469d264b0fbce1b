"""Times training steps beside transformers, PEFT and torch's AdamW, on all cores of the CPU.

  python -m benchmarks.train --base=runs/demo/base

prints a table for every case and writes benchmarks/train.json:

  train_demo     the demo's base (`make demo` makes it), rows of its own tokens
  train_30m      a Llama of 30 million random float32 weights, rows of 128 tokens
  five_together  five adapters of the demo's base in one program, beside one after another

A step is one of `Trainer`: loss on the answers, gradients, clipping, AdamW. Adapters are the
demo's, on all projections, in float32 without dropout, 8 rows a step. Both sides start from the
same adapter, take the same batches at the same learning rates, and have the losses of their first
steps compared. Everything is loaded and compiled before; the sides take turns. Ours cuts the CPU
into a device a core, as the demo does. Small operations may be slower on many threads of torch, so
it has a turn with one as well, and the faster of the two counts.

Needs the extra `dev`.
"""

import os
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from absl import app, flags

from benchmarks import measuring
from benchmarks.machine import describe_machine, one_device
from benchmarks.measuring import ROOT, Section
from benchmarks.random_base import make_random
from configs import demo
from langmerge_jax.adapters import Adapter, save_adapter
from langmerge_jax.data.encoding import Encoded
from langmerge_jax.files import write_json
from langmerge_jax.models.checkpoint import Base, load_base
from langmerge_jax.models.lora import targets_of
from langmerge_jax.models.stacking import init_lora, swap_leading, unstack
from langmerge_jax.parallel.mesh import make_mesh
from langmerge_jax.training.batches import adapter_steps
from langmerge_jax.training.loop import Trainer
from langmerge_jax.training.settings import TrainSettings, adapter_seed
from langmerge_jax.training.steps import Step

_BASE = flags.DEFINE_string("base", "runs/demo/base", "The demo's base model.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Of each timing.", lower_bound=1)
_SCRATCH = flags.DEFINE_string("scratch", "/tmp/bench", "Where the random model goes.")
_OUTPUT = flags.DEFINE_string("output", str(ROOT / "benchmarks/train.json"), "Results.")

ROWS = 8
# Steps whose losses are compared. Adam divides each gradient by its own size, so that the rounding
# of the smallest decides where they go, and on a random base this soon shows.
FIRST = 2
LANGUAGES = ("en", "de", "fr", "ja", "zh")


def main(_) -> None:
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
    scratch = pathlib.Path(_SCRATCH.value).resolve() / "train"
    random, base = scratch / "llama-30m", pathlib.Path(_BASE.value)
    make_random(random, base)
    cases = {
        "train_demo": lambda: beside_torch(base, scratch, length=40, steps=10, bars={"least": 1}),
        "train_30m": lambda: beside_torch(random, scratch, length=128, steps=2, bars={}),
        "five_together": lambda: together(base, length=40, steps=10),
    }
    sections = {}
    for name, case in cases.items():
        section = case()
        sections[name] = {
            "machine": describe_machine("torch", "transformers", "peft")
        } | section.json()
        print(section.table(f"{name}, {os.cpu_count()} cores").text(), flush=True)
    shutil.rmtree(scratch)
    write_json(pathlib.Path(_OUTPUT.value), sections)
    print(f"written: {_OUTPUT.value}")


def settings_of(base: Base, length: int, remat: str = "none") -> TrainSettings:
    """The demo's settings, for batches of `ROWS` rows of one length."""
    config = demo.get_config()
    lora, train = config.lora, config.train.to_dict()
    train |= {"batch_size": ROWS, "buckets": (length,), "remat": remat}
    return TrainSettings(
        rank=lora.rank,
        alpha=lora.alpha,
        rslora=lora.rslora,
        dropout=0.0,
        targets=targets_of(lora.targets, base.config.projections()),
        **train,
    )


def rows_of(base: Base, length: int, count: int, seed: int) -> list[Encoded]:
    """Random prompts that fill three quarters of `length` or more, with answers of two tokens."""
    rng, answer = np.random.default_rng(seed), 2
    return [
        Encoded(tuple(ids[:-answer]), tuple(ids[-answer:]))
        for n in rng.integers(length * 3 // 4, length + 1, count)
        for ids in [rng.integers(5, base.config.vocab_size, n).tolist()]
    ]


def ours(
    trainer: Trainer, steps: Sequence[Step], start: Mapping[str, Adapter] | None = None
) -> Callable[[], list[float]]:
    """Our training, ready to take the steps; it goes on from one call to the next."""
    state, advance = trainer.begin(steps[0].names, start)

    def run() -> list[float]:
        nonlocal state
        losses = []
        for step in steps:
            state, loss, _ = advance(state, step)
            losses.append(float(loss.mean()))
        return losses

    return run


def theirs(
    directory: pathlib.Path,
    adapter: pathlib.Path,
    settings: TrainSettings,
    steps: Sequence[Step],
    threads: int,
) -> Callable[[], list[float]]:
    """That of transformers and PEFT, likewise, with so many threads."""
    import peft
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="sdpa"
    )
    model = peft.PeftModel.from_pretrained(model, adapter, is_trainable=True).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained,
        betas=(settings.b1, settings.b2),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=True,
    )
    batches = [
        {name: torch.tensor(x) for name, x in as_transformers_takes(step).items()} for step in steps
    ]

    def run() -> list[float]:
        torch.set_num_threads(threads)
        losses = []
        for step, batch in zip(steps, batches, strict=True):
            loss = model(**batch, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm, foreach=True)
            for options in optimizer.param_groups:
                options["lr"] = step.rates[0]
            optimizer.step()
            losses.append(loss.item())
        return losses

    return run


def as_transformers_takes(step: Step) -> dict[str, np.ndarray]:
    """Returns the batch of one adapter as token ids, attention mask and labels [b, s]."""
    tokens, index, target, weight = (
        step.arrays[name][0] for name in ("tokens", "target_index", "target", "weight")
    )
    # The last target of a row is its last token.
    lengths = index.max(axis=1, keepdims=True) + 2
    labels = np.full(tokens.shape, -100)
    rows, number = np.nonzero(weight)
    labels[rows, index[rows, number] + 1] = target[rows, number]
    mask = np.arange(tokens.shape[1]) < lengths
    return {"input_ids": tokens, "attention_mask": mask.astype(int), "labels": labels}


def beside_torch(
    directory: pathlib.Path, scratch: pathlib.Path, *, length: int, steps: int, bars: dict
) -> Section:
    """Seconds a step of both, and tokens a second."""
    name = LANGUAGES[0]
    many, one = (load_base(str(directory), mesh=mesh) for mesh in (make_mesh(), one_device()))
    settings = settings_of(one, length)
    data = {name: rows_of(one, length, steps * ROWS, seed=0)}
    taken = list(adapter_steps(data, settings, many.mesh))
    section = Section(
        rows=ROWS,
        length=length,
        rank=settings.rank,
        dtype="float32",
        steps=steps,
        devices=jax.device_count(),
        repeats=_REPEATS.value,
    )
    start = fresh(one, settings, name)
    adapter = scratch / f"adapter-{directory.name}"
    save_adapter(adapter, start[name])
    contestants = {
        "ours": ours(Trainer(many, settings), taken, start),
        **{
            f"ours, remat {remat}": ours(
                Trainer(many, settings_of(one, length, remat)), taken, start
            )
            for remat in ("layer", "products")
        },
        "ours on one device": ours(Trainer(one, settings), taken, start),
        **{
            f"torch, {who}": theirs(directory, adapter, settings, taken, count)
            for who, count in (("all cores", os.cpu_count()), ("one thread", 1))
        },
    }
    losses = {who: np.array(run()[:FIRST]) for who, run in contestants.items()}
    apart = max(np.abs(x / losses["ours"] - 1).max() for x in losses.values())
    section.note("first losses, greatest relative difference", apart, most=1e-4)
    seconds = timed_steps(section, contestants, steps, sum(sum(x.tokens.values()) for x in taken))
    peer = min(value for who, value in seconds.items() if who.startswith("torch"))
    section.note("times faster", peer / seconds["ours"], "x", **bars)
    for who in ("ours, remat layer", "ours, remat products", "ours on one device"):
        section.note(f"times faster, {who}", peer / seconds[who], "x")
    return section


def fresh(base: Base, settings: TrainSettings, name: str) -> dict[str, Adapter]:
    """Returns an adapter as `Trainer` starts it, under its name."""
    lora = init_lora(base.config, settings.lora(1), [adapter_seed(name, settings.seed)])
    return unstack(swap_leading(lora), names=[name], scale=settings.scale, base=base.name)


def timed_steps(
    section: Section, contestants: Mapping[str, Callable], steps: int, tokens: int
) -> dict[str, float]:
    """Notes seconds a step and tokens a second of each, warm; returns the former."""
    found = {}
    for who, seconds in measuring.interleaved(contestants, _REPEATS.value).items():
        found[who] = section.median(f"{who}, a step", [x / steps for x in seconds])
    for who, seconds in found.items():
        section.note(f"{who}, tokens a second", tokens / (steps * seconds))
    return found


def together(directory: pathlib.Path, *, length: int, steps: int) -> Section:
    """Five adapters in one program, and one after another."""
    base = load_base(str(directory), mesh=make_mesh())
    settings = settings_of(base, length)
    data = {name: rows_of(base, length, steps * ROWS, seed) for seed, name in enumerate(LANGUAGES)}
    trainer = Trainer(base, settings)
    at_once = list(adapter_steps(data, settings, base.mesh))
    alone = [
        ours(trainer, list(adapter_steps({name: rows}, settings, base.mesh)))
        for name, rows in data.items()
    ]
    contestants = {
        "together": ours(trainer, at_once),
        "one after another": lambda: [run() for run in alone],
    }
    section = Section(adapters=len(data), rows=ROWS, length=length, steps=steps)
    losses = {who: np.array(run()) for who, run in contestants.items()}
    apart = np.abs(losses["one after another"].mean(axis=0) / losses["together"] - 1).max()
    section.note("losses, greatest relative difference", apart, most=1e-4)
    seconds = timed_steps(section, contestants, steps, sum(sum(x.tokens.values()) for x in at_once))
    section.note("times faster", seconds["one after another"] / seconds["together"], "x", least=1)
    return section


if __name__ == "__main__":
    app.run(main)
