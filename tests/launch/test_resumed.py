"""A training on a slice that is taken away midway goes on where it stood."""

import json

from langmerge_jax.adapters import load_adapter
from langmerge_jax.training.steplog import ledger, read_log
from tests.launch.conftest import SHARE, WORKDIR

STEPS = 60


def test_a_preempted_training_goes_on_from_its_checkpoint(cloud, tiny_config, make_base, tmp_path):
    rows = tmp_path / "rows/en/train.jsonl"
    rows.parent.mkdir(parents=True)
    lines = [
        {"text": f"{'good ' * (k % 5)}{k}", "label": ("positive", "neutral", "negative")[k % 3]}
        for k in range(20)
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = (
        *("python", "-m", "langmerge_jax.train", "--config=tests/tiny.py", WORKDIR),
        "--config.languages=('en',)",
        f"--config.base={make_base(tiny_config)}",
        f"--config.data.path={rows.parents[1]}/{{language}}/{{split}}.jsonl",
        "--config.train.batch_size=4",
        f"--config.train.epochs={STEPS // 5}",
        "--config.train.keep=last",
        "--config.train.checkpoint_steps=10",
    )
    cloud.faults(preempt_when="share/runs/mine/training/*/checkpoints/[0-9]*")
    # Looking costs what training does.
    flags = ("--accelerator=v5litepod-8", "--spot", "--poll_seconds=0.4")
    result = cloud.launch("run", *flags, SHARE, command=command)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "preempted: mine (us-west4-a): preempted, it is SUSPENDED" in result.stderr
    workdir = cloud.folder / "share/runs/mine"
    assert f"adapters: {workdir}/adapters" in result.stdout
    (log,) = workdir.glob("training/**/steps.jsonl")
    cost = ledger(read_log(log), 0)
    assert (cost["attempts"], cost["steps"]) == (2, STEPS)
    assert cost["repeated_steps"] < STEPS - 10
    assert load_adapter(workdir / "adapters/en").modules
