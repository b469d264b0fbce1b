"""The launcher ends with the job done or with one line, and leaves no machine unnoticed."""

import json
import shlex
import signal
import time

import pytest

from tests.launch.conftest import SHARE, job

STILL = "still running: mine (us-west4-a), ACTIVE, 0 min old (delete with python -m launch.tpu_pod "
STILL += "delete --name=mine --zone=us-west4-a)"
NOTHING = "nothing of mine (us-west4-a) is running"
# Ends once a file is there that outlives the slice; a first time it leaves that and waits.
RESUMABLE = 'if [ -e "$DIR/saved" ]; then echo resumed; else echo step > "$DIR/saved"; sleep 60; fi'


def error_line(result) -> str:
    """The one line that says why a launch ended."""
    said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1, result.stderr
    assert result.stderr.splitlines()[-1] == said[0]
    assert "Traceback" not in result.stderr
    return said[0]


def begun(cloud) -> list[str]:
    """The commands with which jobs were begun on the first machine."""
    first = [call for call in cloud.calls() if "--worker=0" in call]
    commands = [flag for call in first for flag in call if flag.startswith("--command=")]
    return [command for command in commands if "worker.sh start" in command]


def test_a_run_ends_with_its_results_and_nothing_left(cloud):
    cloud.faults(workers=2, waiting=2)
    result = cloud.run('pwd > "$DIR/$WORKER"; echo said by $WORKER')
    assert result.returncode == 0, result.stderr
    *before, nothing, last = result.stdout.splitlines()
    assert last == "done: results in /mnt/share/runs/mine, which is /vol/runs/mine on 10.0.0.2"
    assert nothing == NOTHING
    assert (
        "mine (us-west4-a): WAITING_FOR_RESOURCES; there is no room yet, it waits" in result.stdout
    )
    assert "said by 0" in before
    assert "said by 1" not in before
    assert cloud.alive() == {}
    for number in "01":
        ran = (cloud.folder / "share/runs/mine" / number).read_text()
        assert ran == f"{cloud.folder}/worker{number}/langmerge_jax\n"
    # Named by their starts, which need not be those of one second, and their machines.
    logs = sorted((cloud.folder / "share/logs/mine").iterdir(), key=lambda log: log.stem[-1])
    assert [log.read_text() for log in logs] == ["said by 0\n", "said by 1\n"]


def test_machines_are_set_up_once_and_mount_the_share(cloud):
    first = cloud.launch("setup", SHARE)
    second = cloud.launch("setup", SHARE)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert second.stdout.splitlines()[-1] == STILL
    asked = (cloud.folder / "worker0/asked").read_text().splitlines()
    assert "sudo mount -t nfs 10.0.0.2:/vol /mnt/share" in asked
    assert sum(line.startswith("uv venv") for line in asked) == 1
    (install,) = [line for line in asked if line.startswith("uv pip")]
    assert install.endswith("-c requirements.lock -e .[tpu]")
    assert (cloud.folder / "worker0/langmerge_jax/configs/demo.py").exists()
    other = cloud.launch("setup", "--share=10.0.0.9:/other")
    assert other.returncode == 2
    assert error_line(other).endswith(
        "--share=10.0.0.9:/other: /mnt/share is 10.0.0.2:/vol; give that one, or delete the slice "
        "before"
    )


def test_a_preempted_run_is_begun_again_with_the_same_command(cloud):
    cloud.faults(workers=2, preempt_when="share/runs/mine/saved")
    result = cloud.run(RESUMABLE, "--spot")
    assert result.returncode == 0, result.stderr
    assert "preempted: mine (us-west4-a): preempted, it is SUSPENDED; 20 retries left" in (
        result.stderr
    )
    assert "resumed" in result.stdout
    first, second = begun(cloud)
    assert first == second
    verbs = [verb for verb in cloud.verbs() if verb.split()[1] in ("create", "delete")]
    assert [verb.split()[1] for verb in verbs] == ["create", "delete", "create", "delete"]
    assert cloud.alive() == {}


def test_a_run_preempted_too_often_can_be_gone_on_with(cloud):
    cloud.faults(preempt_when="share/runs/mine/saved", slices=9)
    result = cloud.run('echo step > "$DIR/saved"; sleep 60', "--retries=1")
    assert result.returncode == 143
    assert error_line(result).endswith("is SUSPENDED; run the same command to go on")
    assert len(begun(cloud)) <= 2
    assert cloud.verbs().count("queued-resources create") == 2
    assert result.stdout.splitlines()[-1].startswith("takes up quota: mine (us-west4-a), SUSPENDED")


def test_a_worker_that_goes_silent_is_named_and_the_run_begun_again(cloud):
    cloud.faults(workers=3, dead_when=[2, "share/runs/mine/saved"])
    result = cloud.run(RESUMABLE)
    assert result.returncode == 0, result.stderr
    assert "preempted: worker 2 of mine: has not answered for " in result.stderr
    assert cloud.verbs().count("queued-resources create") == 2


def test_a_slice_that_is_silent_but_there_is_not_deleted(cloud):
    cloud.faults(workers=2, silent_when="share/runs/mine/saved")
    result = cloud.run('echo step > "$DIR/saved"; sleep 60')
    assert result.returncode == 1
    assert error_line(result) == (
        "error: mine (us-west4-a): no worker has answered for 0 s, though Google Cloud says that "
        "it is there; if that is the way to it, run the same command to follow, else delete it"
    )
    assert result.stdout.splitlines()[-1] == STILL
    assert "queued-resources delete" not in cloud.verbs()


def test_workers_that_are_silent_in_turn_are_not_lost(cloud):
    cloud.faults(workers=2, in_turn=True)
    looks = 'grep -c "worker.sh poll" "$FAKE_CLOUD/calls.jsonl"'
    script = f'until [ "$({looks})" -gt 12 ]; do sleep 0.1; done'
    result = cloud.run(script, "--lost_seconds=0.2")
    assert result.returncode == 0, result.stderr
    assert "preempted" not in result.stderr
    assert cloud.verbs().count("queued-resources create") == 1


def test_a_command_that_fails_is_told_of_though_another_worker_is_silent(cloud):
    cloud.faults(workers=2, dead_when=[1, "share/runs/mine/saved"])
    fails = 'if [ "$WORKER" = 0 ]; then echo > "$DIR/saved"; exit 3; fi; sleep 60'
    result = cloud.run(fails, "--peers_seconds=0.3", "--lost_seconds=60")
    assert error_line(result) == "error: worker 0 of mine: the command ended with status 3"
    assert "worker 1 of mine: not stopped (ERROR: " in result.stderr
    assert len(begun(cloud)) == 1


def test_a_worker_that_lets_nobody_in_where_others_do_is_named(cloud):
    cloud.faults(workers=2, dead_when=[1, "calls.jsonl"])
    result = cloud.run("true", "--ssh_seconds=0.5")
    assert result.returncode == 0, result.stderr
    assert "preempted: worker 1 of mine: has let nobody in for 0 s" in result.stderr
    assert cloud.verbs().count("queued-resources create") == 2


def test_a_killed_process_is_named_and_begun_again_on_the_same_machines(cloud):
    cloud.faults(workers=2)
    killed = 'if mkdir "$DIR/once" 2> /dev/null; then kill -9 $$; fi; sleep 0.2; echo again'
    result = cloud.run(f'if [ "$WORKER" = 1 ]; then {killed}; fi')
    assert result.returncode == 0, result.stderr
    assert "preempted: worker 1 of mine: its process was killed" in result.stderr
    assert cloud.verbs().count("queued-resources create") == 1
    assert len(begun(cloud)) == 2


def test_a_process_that_is_killed_each_time_ends_the_run(cloud):
    result = cloud.run("kill -9 $$")
    assert result.returncode == 1
    assert error_line(result) == (
        "error: worker 0 of mine: its process was killed, for want of memory if the machine stays, "
        "twice; see how much memory the machines have"
    )
    assert result.stdout.splitlines()[-1] == STILL
    assert len(begun(cloud)) == 2


def test_a_command_that_was_told_to_end_is_begun_again(cloud):
    result = cloud.run('mkdir "$DIR/once" 2> /dev/null && exit 143; echo resumed')
    assert result.returncode == 0, result.stderr
    assert "preempted: worker 0 of mine: told to end, saved and left" in result.stderr
    assert "resumed" in result.stdout


@pytest.mark.parametrize(("status", "launcher"), [(3, 1), (2, 2)])
def test_a_command_that_fails_is_not_begun_again(cloud, status, launcher):
    cloud.faults(workers=2)
    fails = f'if [ "$WORKER" = 1 ]; then echo cause; exit {status}; fi; sleep 60'
    result = cloud.run(fails, "--peers_seconds=0.3")
    assert result.returncode == launcher
    line = error_line(result)
    assert line == f"error: worker 1 of mine: the command ended with status {status}"
    assert f"worker 1, {cloud.folder}/kept/logs/1.log:\ncause" in result.stderr
    assert result.stdout.splitlines()[-1] == STILL
    assert len(begun(cloud)) == 1


@pytest.mark.parametrize("status", [134, 143])
def test_who_leaves_for_want_of_a_peer_is_not_to_blame(cloud, status):
    cloud.faults(workers=2)
    result = cloud.run(f'if [ "$WORKER" = 1 ]; then exit 1; fi; sleep 0.3; exit {status}')
    assert error_line(result) == "error: worker 1 of mine: the command ended with status 1"
    assert len(begun(cloud)) == 1


def test_a_slice_is_deleted_after_a_failure_where_that_is_asked(cloud):
    result = cloud.run("exit 1", "--delete_after=always")
    assert result.returncode == 1
    assert result.stdout.splitlines()[-1] == NOTHING
    assert cloud.alive() == {}


def test_without_a_share_results_and_their_machine_stay(cloud):
    command = ("bash", "-c", "true", "job", "--workdir=runs/mine")
    result = cloud.launch("run", "--accelerator=v5litepod-8", command=command)
    assert result.returncode == 0, result.stderr
    *_, still, last = result.stdout.splitlines()
    assert still == STILL
    assert last == "done: results in ~/langmerge_jax/runs/mine on mine, whose disk goes with it"


def until(found, process) -> None:
    """Waits until something is found while the launcher runs."""
    end = time.monotonic() + 120
    while not found():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)


def test_an_interrupted_run_goes_on_and_is_followed_again(cloud):
    cloud.faults(workers=2)
    # One of them has soon ended.
    waits = 'until [ -e "$DIR/go" ] || [ "$WORKER" = 1 ]; do sleep 0.1; done; echo "went on"'
    workdir = cloud.folder / "share/runs/mine"
    process = cloud.begin("run", SHARE, command=job(waits + '; echo > "$DIR/ended$WORKER"'))
    until((workdir / "ended1").exists, process)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error.splitlines()[-1] == "interrupted: what runs on the machines goes on"
    assert output.splitlines()[-1] == STILL

    # A connection that is refused says nothing of what runs there.
    cloud.faults(workers=2, ssh_refused=1)
    other = cloud.run("true")
    assert other.returncode == 2
    assert "mine (us-west4-a): runs another command, bash -c " in error_line(other)

    cloud.faults(workers=2, ssh_refused=2)
    again = cloud.begin("run", SHARE, command=job(waits + '; echo > "$DIR/ended$WORKER"'))
    assert again.stdout.readline() == "mine (us-west4-a): ACTIVE\n"
    assert again.stdout.readline() == "mine (us-west4-a): the command runs already\n"
    (workdir / "go").touch()
    output, error = again.communicate(timeout=120)
    assert again.returncode == 0, error
    assert "went on" in output
    assert len(begun(cloud)) == 1


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ended_in_the_queue_it_says_that_the_slice_will_come(cloud, number, status):
    cloud.faults(waiting=10_000)
    process = cloud.begin("run", SHARE, command=job("true"))
    until(lambda: cloud.verbs().count("queued-resources describe") > 2, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == status
    last = output.splitlines()[-1]
    assert last.startswith("still in the queue: mine (us-west4-a), WAITING_FOR_RESOURCES, 0 min")
    assert "launch.tpu_pod delete --name=mine" in last


def test_a_slice_that_somebody_deleted_is_not_made_again(cloud):
    process = cloud.begin("run", SHARE, command=job('echo > "$DIR/begun"; sleep 60'))
    until((cloud.folder / "share/runs/mine/begun").exists, process)
    second = cloud.run("true")
    assert second.returncode == 2
    assert error_line(second).startswith(
        f"error: --name=mine: another launcher is at it, in {cloud.folder}/kept; wait for that"
    )
    assert cloud.launch("delete").returncode == 0
    output, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "mine (us-west4-a): was deleted meanwhile" in error
    assert output.splitlines()[-1] == NOTHING
    assert cloud.verbs().count("queued-resources create") == 1


def test_status_lists_what_was_started_here_and_lives(cloud):
    assert cloud.launch("status").stdout == ("nothing that was started here lives in us-west4-a\n")
    cloud.launch("create")
    state = json.loads((cloud.folder / "state.json").read_text())
    state["slices"]["foreign"] = {**state["slices"]["mine"], "labels": {"owner": "others"}}
    (cloud.folder / "state.json").write_text(json.dumps(state))
    rows = [line.split("  ") for line in cloud.launch("status").stdout.splitlines()]
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == [
        ["NAME", "KIND", "ACCELERATOR", "STATE", "AGE"],
        ["mine", "queued-resources", "v5litepod-16", "ACTIVE", "0 min"],
        ["mine", "tpu-vm", "v5litepod-16", "READY", "0 min"],
    ]


def test_logs_of_all_machines_are_brought_here(cloud):
    cloud.faults(workers=2)
    before = cloud.launch("logs")
    assert (before.returncode, error_line(before)) == (
        1,
        "error: mine (us-west4-a): no logs, it is ABSENT",
    )
    cloud.run("echo said by $WORKER", "--delete_after=never")
    result = cloud.launch("logs", SHARE)
    folder = cloud.folder / "kept/logs"
    assert result.stdout.splitlines() == [f"{folder}/0.log", f"{folder}/1.log"]
    assert (folder / "1.log").read_text() == "said by 1\n"


def test_what_runs_where_all_goes_well_is_what_the_dry_run_says(cloud):
    dry = cloud.launch("run", SHARE, "--dry_run", command=job("sleep 0.5"))
    assert cloud.calls() == []
    told = [shlex.split(line)[1:] for line in dry.stdout.splitlines() if line.startswith("gcloud ")]
    assert cloud.run("sleep 0.5").returncode == 0
    ran = []
    for call in cloud.calls():
        if call not in ran and call[2:4] != ["tpu-vm", "describe"]:
            ran.append(call)
    # First it looks whether the slice is there.
    assert sorted(ran) == sorted(told)
    assert [call for call in ran if "describe" not in call] == [
        call for call in told if "describe" not in call
    ]
