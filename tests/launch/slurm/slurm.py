"""Stands for Slurm 23: sbatch runs a script at once, srun its tasks on this machine for real.

Under $FAKE_CLUSTER lie calls.jsonl and what a job writes; $FIRST_RESTART is how often a new job was
in the queue before. Options that Slurm does not have, or that are no #SBATCH lines before the first
command, are refused or ignored as by Slurm.
"""

import json
import os
import pathlib
import subprocess
import sys

CLUSTER = pathlib.Path(os.environ["FAKE_CLUSTER"])
SBATCH = {
    *("--job-name", "--nodes", "--ntasks-per-node", "--gpus-per-node", "--cpus-per-task"),
    *("--time", "--output", "--open-mode", "--requeue", "--signal", "--partition", "--account"),
}
SRUN = {"--gpu-bind", "--kill-on-bad-exit"}
JOB = os.environ.get("SLURM_JOB_ID", str(os.getpid() % 4096))


def options(words, known, tool):
    """Splits words into options and what stands behind them."""
    found = {}
    for number, word in enumerate(words):
        if not word.startswith("--"):
            return found, words[number:]
        name, _, value = word.partition("=")
        if name not in known:
            sys.exit(f"{tool}: unrecognized option '{word}'")
        found[name] = value
    return found, []


def directives(script):
    words = []
    for line in pathlib.Path(script).read_text().splitlines():
        if line.startswith("#SBATCH "):
            words.append(line.split(maxsplit=1)[1])
        elif line and not line.startswith("#"):
            break
    found, rest = options(words, SBATCH, "sbatch")
    assert rest == []
    return found


def sbatch(words):
    given, (script, *arguments) = options(words, SBATCH, "sbatch")
    settings = {**directives(script), **given}
    tasks = int(settings["--nodes"]) * int(settings["--ntasks-per-node"])
    environment = {
        **os.environ,
        "SLURM_JOB_ID": JOB,
        "SLURM_SUBMIT_DIR": os.getcwd(),
        "SLURM_NTASKS": str(tasks),
        **({"SLURM_GPUS_ON_NODE": "1"} if "--gpus-per-node" in settings else {}),
    }
    name = settings["--output"].replace("%x", settings["--job-name"]).replace("%j", "7")
    print("Submitted batch job 7")
    for restart in range(int(os.environ.get("FIRST_RESTART", 0)), 30):
        if restart:
            environment["SLURM_RESTART_COUNT"] = str(restart)
        with (CLUSTER / name).open("a" if settings["--open-mode"] == "append" else "w") as log:
            # A script is run from where Slurm keeps it.
            kept = CLUSTER / "slurm_script"
            kept.write_text(pathlib.Path(script).read_text())
            done = subprocess.run(
                ["bash", str(kept), *arguments],
                cwd=CLUSTER,
                env=environment,
                stdout=log,
                stderr=log,
                check=False,
            )
        note("ended", [str(done.returncode)])
        again = CLUSTER / "requeued"
        if not (again.exists() and "--requeue" in settings):
            break
        again.unlink()


def srun(words):
    _, command = options(words, SRUN, "srun")
    if "SRUN_ONLY_NOTES" in os.environ:
        return
    count = int(os.environ["SLURM_NTASKS"])
    tasks = [
        subprocess.Popen(
            command,
            env={
                **os.environ,
                "SLURM_STEP_NODELIST": "localhost",
                "SLURM_STEP_NUM_NODES": "1",
                "SLURM_PROCID": str(number),
                "SLURM_LOCALID": str(number),
            },
        )
        for number in range(count)
    ]
    sys.exit(max(task.wait() for task in tasks))


def scontrol(words):
    assert words == ["requeue", JOB]
    (CLUSTER / "requeued").touch()


def note(tool, words):
    with (CLUSTER / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps([tool, *words]) + "\n")


note(sys.argv[1], sys.argv[2:])
{"sbatch": sbatch, "srun": srun, "scontrol": scontrol}[sys.argv[1]](sys.argv[2:])
