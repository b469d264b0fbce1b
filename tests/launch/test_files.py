"""Scripts, manifest, flags and image are what the tools that read them take."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from tests.doors import ROOT

SCRIPTS = [
    path
    for pattern in (
        "launch/*.sh",
        "launch/slurm.sbatch",
        "tests/launch/google/**/*",
        "tests/launch/slurm/s*",
    )
    for path in ROOT.glob(pattern)
    if path.is_file() and not path.is_symlink() and path.suffix not in (".py", ".pyc")
]


def shellcheck() -> str | None:
    beside = str(pathlib.Path(sys.executable).parent)
    return shutil.which("shellcheck") or shutil.which("shellcheck", path=beside)


@pytest.mark.skipif(
    shellcheck() is None, reason="shellcheck is not installed; the dev extra has it"
)
def test_shellcheck_finds_nothing():
    assert len(SCRIPTS) >= 12
    found = subprocess.run([shellcheck(), *SCRIPTS], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def flags(device: str, **environment: str) -> dict[str, str]:
    """The environment after sourcing the flags for a device."""
    command = ["bash", "-euc", f". launch/xla_flags.sh {device}; env"]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(line.partition("=")[::2] for line in result.stdout.splitlines())


def test_flags_for_gpus_are_known_to_jaxlib():
    code = "import jax; jax.numpy.zeros(1).block_until_ready()"
    given = flags("gpu")["XLA_FLAGS"]
    for text, known in ((given, True), (f"{given} --xla_gpu_never_heard_of=true", False)):
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={"PATH": "/usr/bin:/bin", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": text},
            capture_output=True,
            text=True,
        )
        assert (result.returncode == 0) == known, result.stderr
        assert ("Unknown flag" in result.stderr) != known


def test_flags_that_are_set_stay():
    found = flags("gpu", XLA_FLAGS="--xla_dump_to=d", XLA_PYTHON_CLIENT_MEM_FRACTION="0.5")
    assert found["XLA_FLAGS"].startswith("--xla_dump_to=d --xla_gpu")
    assert found["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.5"
    # Both together jax refuses.
    assert "XLA_CLIENT_MEM_FRACTION" not in found
    assert flags("gpu", XLA_CLIENT_MEM_FRACTION="0.5")["XLA_CLIENT_MEM_FRACTION"] == "0.5"
    assert flags("gpu")["XLA_CLIENT_MEM_FRACTION"] == "0.9"
    assert "XLA_FLAGS" not in flags("tpu")


def test_flags_of_another_device_are_refused():
    command = ["bash", "-c", ". launch/xla_flags.sh npu; exit $?"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == "error: launch/xla_flags.sh npu: give gpu or tpu\n"


# Of the JobSet API (jobset.x-k8s.io/v1alpha2), of batch/v1 and of core/v1, what the manifest uses;
# a name ending in ! is required, {str: x} any keys.
CONTAINER = {
    **{"name!": str, "image!": str, "command": [str], "args": [str]},
    "securityContext": {"runAsUser": int, "capabilities": {"add": [str]}},
    "resources": {"limits": {str: int}},
    "volumeMounts": [{"name!": str, "mountPath!": str}],
}
POD = {
    "restartPolicy!": {"Never", "OnFailure"},
    "terminationGracePeriodSeconds": int,
    "nodeSelector": {str: str},
    "containers!": [CONTAINER],
    "volumes": [{"name!": str, "nfs": {"server!": str, "path!": str}}],
}
JOB = {
    **{"parallelism": int, "completions": int, "backoffLimit": int},
    "completionMode": {"Indexed", "NonIndexed"},
    "podFailurePolicy": {
        "rules!": [
            {
                "action!": {"FailJob", "FailIndex", "Ignore", "Count"},
                "onExitCodes": {
                    **{"containerName": str, "operator!": {"In", "NotIn"}, "values!": [int]}
                },
            }
        ]
    },
    "template!": {"spec!": POD},
}
JOBSET = {
    "apiVersion!": {"jobset.x-k8s.io/v1alpha2"},
    "kind!": {"JobSet"},
    "metadata!": {"name!": str, "annotations": {str: str}},
    "spec!": {
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [
                {
                    "name": str,
                    "action!": {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"},
                    "onJobFailureReasons": [str],
                }
            ],
        },
        "replicatedJobs!": [{"name!": str, "replicas": int, "template!": {"spec!": JOB}}],
    },
}


def misfits(value, schema, place="") -> list[str]:
    """Where a value is not what a schema says."""
    if isinstance(schema, set):
        return [] if value in schema else [f"{place}: {value!r}"]
    if isinstance(schema, type):
        return [] if type(value) is schema else [f"{place}: {value!r}"]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [f"{place}: {value!r}"]
        return [
            x for k, item in enumerate(value) for x in misfits(item, schema[0], f"{place}[{k}]")
        ]
    if not isinstance(value, dict):
        return [f"{place}: {value!r}"]
    if str in schema:
        return [x for k, item in value.items() for x in misfits(item, schema[str], f"{place}.{k}")]
    known = {name.rstrip("!"): below for name, below in schema.items()}
    found = [
        f"{place}.{name}: missing" for name in schema if name[-1] == "!" and name[:-1] not in value
    ]
    for name, item in value.items():
        found += (
            misfits(item, known[name], f"{place}.{name}")
            if name in known
            else [f"{place}.{name}: unknown"]
        )
    return found


@pytest.fixture
def jobset() -> dict:
    return yaml.safe_load((ROOT / "launch/gke_jobset.yaml").read_text())


def test_the_manifest_is_a_jobset(jobset):
    assert misfits(jobset, JOBSET) == []
    # A pod that names no such container, or asks with an unknown word, is found.
    jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["backofLimit"] = 0
    jobset["spec"]["failurePolicy"]["maxRestarts"] = "20"
    assert misfits(jobset, JOBSET) == [
        ".spec.failurePolicy.maxRestarts: '20'",
        ".spec.replicatedJobs[0].template.spec.backofLimit: unknown",
    ]


def test_the_manifest_holds_together(jobset):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    assert {m["name"] for m in container["volumeMounts"]} == {v["name"] for v in pod["volumes"]}
    chips = 1
    for side in pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x"):
        chips *= int(side)
    assert job["parallelism"] == job["completions"]
    assert chips == job["parallelism"] * container["resources"]["limits"]["google.com/tpu"]
    assert "--distributed=auto" in container["args"]
    (workdir,) = [x for x in container["args"] if x.startswith("--workdir=")]
    assert workdir.startswith(f"--workdir={container['volumeMounts'][0]['mountPath']}/")


def test_the_manifest_runs_its_arguments_as_a_command(jobset):
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    container = pod["containers"][0]
    # What the container runs, but for the limit, which takes root.
    shell = [word.replace("ulimit -l 68719476736", "true") for word in container["command"]]
    result = subprocess.run([*shell, "echo", "a b", "c"], capture_output=True, text=True)
    assert result.stdout == "a b c\n"


def test_the_image_is_made_of_what_is_there():
    text = (ROOT / "launch/Dockerfile").read_text()
    setup = (ROOT / "setup.py").read_text()
    for default in re.findall(r"DEVICE=(\w+)", text):
        assert f'"{default}": ["jax[{default}]' in setup
    copied = [line.split()[1:-1] for line in text.splitlines() if line.startswith("COPY ")]
    assert copied
    assert all((ROOT / name).exists() for names in copied for name in names)
    assert "-c requirements.lock" in text
    # Nothing that follows runs as root.
    assert text.index("\nUSER langmerge") < text.index("\nCMD")
