"""Says what a training will take, before anything is paid for: memory, time and hours.

  python -m langmerge_jax.plan --config=configs/sentiment_en.py --topology=v5e:4x4,v5p:2x2x1 \\
      --length=2048

compiles the very step of the config's training for TPU slices that need not be there, on a machine
without a TPU; `pip install -e '.[tpu]'` brings the compiler. Without --topology it plans for the
devices at hand, and with --measure takes the step there, too. Only for that the base's weights are
read. Without --length the training rows are, for their lengths.
"""

import math
import os

from absl import flags

from langmerge_jax import cli
from langmerge_jax.errors import InputError

cli.define_flags()
_TOPOLOGY = flags.DEFINE_list(
    "topology", [], "TPU slices, generation and shape, such as v5e:4x4,v6e:2x4,v5p:2x2x1."
)
_LENGTH = flags.DEFINE_integer(
    "length",
    0,
    "Tokens of every row, data.rows.train of them, instead of reading the rows.",
    lower_bound=0,
)
_ANSWER = flags.DEFINE_integer(
    "answer_length", 16, "Tokens of a row that are predicted, with --length.", lower_bound=1
)
_UTILIZATION = flags.DEFINE_float(
    "utilization", 0.5, "Share of the best speed that hours are counted with."
)
_DOLLARS = flags.DEFINE_list(
    "dollars",
    [],
    "Dollars of a chip's hour by generation, such as v5e=1.2,v5p=4.2, for slices of several; "
    "config.dollars_per_device_hour otherwise.",
)
_MEASURE = flags.DEFINE_bool(
    "measure", False, "Also take the largest step, on the devices at hand, and compare."
)


def _price(given: str) -> tuple[str, float]:
    generation, _, dollars = given.partition("=")
    try:
        price = float(dollars)
    except ValueError:
        price = 0.0
    if not 0 < price < math.inf:
        raise InputError(f"--dollars={given}: give generation=dollars, such as v5e=1.2")
    return generation, price


def main() -> None:
    config, workdir = cli.config_and_workdir()
    if _TOPOLOGY.value:
        # Compiling needs no device: libtpu is not to look for one, nor for who else uses it.
        os.environ["JAX_PLATFORMS"] = "cpu"
        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    # Imported here, so that --help and wrong flags answer at once.
    from langmerge_jax.lifecycle.planning import plan
    from langmerge_jax.lifecycle.run import Run

    run = Run(config, workdir, claim=False)
    print(
        plan(
            run,
            _TOPOLOGY.value,
            length=_LENGTH.value,
            answer=_ANSWER.value,
            utilization=_UTILIZATION.value,
            prices=dict(map(_price, _DOLLARS.value)),
            measure=_MEASURE.value,
        )
    )


if __name__ == "__main__":
    cli.run(main)
