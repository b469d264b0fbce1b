"""One run: a config, a workdir, and what both imply, loaded when first needed."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from langmerge_jax.config import claim_workdir, to_json
from langmerge_jax.data.encoding import Encoded
from langmerge_jax.data.examples import Example
from langmerge_jax.data.sources import Source, SourceSpec
from langmerge_jax.errors import InputError
from langmerge_jax.lifecycle.stages import digest, identity
from langmerge_jax.models.checkpoint import Base, load_base, load_tokenizer, resolve
from langmerge_jax.models.config import LlamaConfig
from langmerge_jax.models.lora import targets_of
from langmerge_jax.parallel.mesh import make_mesh
from langmerge_jax.parallel.processes import agree
from langmerge_jax.tasks.make import make_task
from langmerge_jax.tasks.task import Task
from langmerge_jax.training.loop import Trainer
from langmerge_jax.training.settings import TrainSettings

COMBINED = "combined"


class Run:
    """Paths and lazily loaded parts of one run.

    Args:
      config: from `langmerge_jax.config.default`, changed by a config file and flags.
      workdir: where everything is written; claimed for this config.
      profile: steps of each training that jax's profiler records.
      claim: whether the workdir becomes this config's own; not where nothing will be written.

    Raises:
      InputError: if the workdir belongs to another config.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: pathlib.Path,
        *,
        profile: range = range(0),
        claim: bool = True,
    ):
        if not config.languages or len(set(config.languages)) != len(config.languages):
            raise InputError(f"languages={config.languages}: name each language once, at least one")
        if COMBINED in config.languages:
            raise InputError(f"{COMBINED!r} is the adapter of all languages, no language code")
        if not config.data.path:
            raise InputError(
                "data.path is empty; say where the rows lie, such as "
                "--config.data.path='DIR/{language}/{split}.csv'"
            )
        self.config, self.workdir, self._profile = config, workdir, profile
        if config.cpu_devices:
            # At once: no stage may use jax before this, and any stage may be the first to do so.
            jax.config.update("jax_platforms", "cpu")
            jax.config.update("jax_num_cpu_devices", config.cpu_devices)
        if claim:
            agree(lambda: claim_workdir(workdir, config))
        self.languages = tuple(config.languages)
        # Where results go; an update of a run has a home of its own in the run's workdir.
        self.home = workdir

    def path(self, text: str) -> str:
        """Fills the placeholder {workdir}."""
        return text.replace("{workdir}", str(self.workdir))

    def adapter_directory(self, name: str) -> pathlib.Path:
        """Where the adapter of a language, or `combined`, lies."""
        return self.home / "adapters" / name

    def merged_directory(self, recipe: str) -> pathlib.Path:
        """Where the adapter merged by a recipe lies."""
        return self.home / "merged" / recipe.replace("/", "-")

    def predictions_directory(self, variant: str) -> pathlib.Path:
        """Where a variant's predictions lie, a file a language."""
        return self.home / "predictions" / variant.replace("/", "-")

    def training_directory(self, name: str, inputs: Mapping[str, Any]) -> pathlib.Path:
        """Where the step log and checkpoints of one training lie, apart for other inputs."""
        return self.workdir / "training" / f"{name}-{digest(inputs)[:12]}"

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh:
        return make_mesh(**self.config.mesh)

    def at_once(self, count: int) -> int:
        """Returns how many of `count` adapters train side by side, at least 1.

        Raises:
          InputError: if the config says a number below 0.
        """
        size = self.config.adapters_at_once
        if size < 0:
            raise InputError(f"adapters_at_once={size}: give a number of adapters, or 0 for all")
        return size or max(count, 1)

    @property
    def dtype(self) -> jnp.dtype:
        """Of weights and computation."""
        dtypes = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
        if self.config.dtype not in dtypes:
            raise InputError(f"dtype={self.config.dtype!r}; known: {', '.join(dtypes)}")
        return dtypes[self.config.dtype]

    @functools.cached_property
    def base_identity(self) -> str:
        """Digest of the base model, without loading it."""
        return identity(resolve(self.path(self.config.base)))

    @functools.cached_property
    def base(self) -> Base:
        return load_base(
            self.path(self.config.base),
            mesh=self.mesh,
            dtype=self.dtype,
            attention=self.config.attention,
        )

    @functools.cached_property
    def tokenizer(self):
        """The base's tokenizer, without loading the base."""
        return load_tokenizer(resolve(self.path(self.config.base)))

    @functools.cached_property
    def task(self) -> Task:
        if self.config.tasks:
            raise InputError(
                f"tasks={', '.join(self.config.tasks)}: several tasks are for the experiment door; "
                "this one takes a config of one task"
            )
        return make_task(self.config)

    @property
    def asked(self) -> dict[str, Any]:
        """What decides how rows are asked."""
        return to_json(self.config)["task"]

    @functools.cached_property
    def scoring(self) -> dict[str, Any]:
        """What scores depend on beside outputs and references."""
        encoders = [identity(resolve(x, "encoder")) for x in self.task.encoders]
        return self.task.scoring | ({"encoders": encoders} if encoders else {})

    @functools.cached_property
    def source(self) -> Source:
        return Source(self.source_spec(), self.task)

    def source_spec(self) -> SourceSpec:
        """Returns which rows the run reads."""
        return source_spec(self.config.data, self.path, self.languages)

    def examples(self, language: str, split: str) -> list[Example]:
        """Returns one language's rows of a split."""
        return self.source.draw(language, split)

    def encode(self, rows: Sequence[Example]) -> list[Encoded]:
        """Returns rows as tokens to train on."""
        return self.task.encode(self.tokenizer, rows)

    @functools.cached_property
    def trainer(self) -> Trainer:
        return Trainer(
            self.base,
            self.train_settings(self.base.config),
            tensorboard=self.config.tensorboard,
            profile=self._profile,
        )

    def train_settings(self, base: LlamaConfig) -> TrainSettings:
        """Returns how adapters of a base of this shape are trained."""
        train, lora = self.config.train, self.config.lora
        return TrainSettings(
            rank=lora.rank,
            alpha=lora.alpha,
            rslora=lora.rslora,
            dropout=lora.dropout,
            targets=targets_of(lora.targets, base.projections()),
            **train.to_dict(),
        )


class RunWithin(Run):
    """A run in the workdir of another, which shares what that has loaded.

    Args:
      run: the other.
    """

    def __init__(self, run: Run):
        self._run, self.config, self.workdir, self.home = run, run.config, run.workdir, run.home
        self.languages, self._profile = run.languages, run._profile

    @property
    def mesh(self):
        return self._run.mesh

    @property
    def base(self):
        return self._run.base

    @property
    def base_identity(self) -> str:
        return self._run.base_identity

    @property
    def tokenizer(self):
        return self._run.tokenizer

    @property
    def trainer(self):
        return self._run.trainer


def source_spec(
    data: ml_collections.ConfigDict, path: Callable[[str], str], languages: Sequence[str]
) -> SourceSpec:
    """Returns which rows a config's section `data` reads.

    Args:
      path: fills the placeholders of a path.
      languages: that are read.

    Raises:
      InputError: if nothing tells the languages' rows apart.
    """
    settings = data.to_dict()
    settings.pop("labels")  # The task's.
    where = settings["path"]
    apart = "{language}" in where or where.startswith("hf:") or settings["language_field"]
    if not apart and len(languages) > 1:
        raise InputError(
            f"data.path={where!r} is the same for {', '.join(languages)}; write {{language}} where "
            "it differs, or name the column by data.language_field"
        )
    return SourceSpec(**settings | {"path": path(where)})
