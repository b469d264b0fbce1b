"""What Google Cloud or the launcher itself refuses ends in one line, unless it passes."""

import json

import pytest

from tests.launch.conftest import SHARE, WORKDIR, job
from tests.launch.test_tpu_pod import NOTHING, STILL, error_line


@pytest.mark.parametrize(
    "faults",
    [
        {"create": ["RESOURCE_EXHAUSTED: Quota limit 'V5' has been exceeded. Limit: 0 in zone z."]},
        {"failed": [8, "Quota 'V5' exhausted. Limit 0 in region us-west4"]},
    ],
)
def test_a_quota_ends_the_run_with_what_to_ask_for(cloud, faults):
    cloud.faults(**faults)
    result = cloud.run("true")
    assert result.returncode == 1
    line = error_line(result)
    assert "Quota" in line
    assert "ask for more of that quota of the Cloud TPU API for the zone at https://console" in line
    assert cloud.verbs().count("queued-resources create") == 1
    left = result.stdout.splitlines()[-1]
    assert left == NOTHING if "create" in faults else left.startswith("takes up quota: mine")


RATE = (
    "RESOURCE_EXHAUSTED: Quota exceeded for quota metric 'Create requests' and limit 'Create "
    "requests per minute' of service 'tpu.googleapis.com' for consumer 'project_number:1'."
)
AWAY = (
    "HttpError accessing <https://tpu.googleapis.com/v2/projects/p>: response: <{'status': 503}>, "
    'content <{"error": {"code": 503, "message": "The service is currently unavailable.", '
    '"status": "UNAVAILABLE"}}>\nThis may be due to network connectivity issues.'
)


def test_a_slice_that_could_not_be_had_is_asked_for_again(cloud):
    cloud.faults(failed=[8, "There is no more capacity in the zone"], create=[RATE, AWAY])
    result = cloud.run("true")
    assert result.returncode == 0, result.stderr
    assert "could not be had (There is no more capacity in the zone); 20 retries" in result.stderr
    assert cloud.verbs().count("queued-resources create") == 4


def test_a_slice_that_was_made_though_it_was_refused_is_taken(cloud):
    cloud.faults(unheard=[AWAY])
    result = cloud.launch("create")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1].startswith("still ")
    assert cloud.verbs().count("queued-resources create") == 1


def test_google_cloud_that_is_away_is_told_in_its_words(cloud):
    cloud.faults(create=[AWAY] * 99)
    result = cloud.launch("create", "--ssh_seconds=0.2")
    assert result.returncode == 1
    assert error_line(result) == (
        "error: mine (us-west4-a): refused (UNAVAILABLE: The service is currently unavailable.)"
    )
    assert result.stdout.splitlines()[-1] == NOTHING


def test_deleting_is_tried_again_unless_it_is_forbidden(cloud):
    cloud.launch("create")
    cloud.faults(delete=[AWAY, "PERMISSION_DENIED: Permission 'tpu.nodes.delete' denied."])
    result = cloud.launch("delete", "--ssh_seconds=60")
    assert result.returncode == 1
    assert error_line(result).startswith("error: mine (us-west4-a): could not be deleted (ERROR: ")
    assert cloud.verbs().count("queued-resources delete") == 2


def test_machines_that_boot_are_tried_until_they_let_one_in(cloud):
    cloud.faults(ssh_refused=3)
    # Nor is there yet what they install from.
    (cloud.folder / "unreachable").mkdir()
    result = cloud.run("true")
    assert result.returncode == 0, result.stderr
    assert cloud.verbs().count("tpu-vm scp") == 4
    assert result.stderr == (
        "mine (us-west4-a): setting up failed on worker 0 with status 2: error: Failed to fetch; "
        "tried again\n"
    )


def test_machines_that_cannot_be_set_up_end_the_run_with_one_line(cloud):
    (cloud.folder / "unreachable/still").mkdir(parents=True)
    result = cloud.run("true")
    assert result.returncode == 1
    assert error_line(result).endswith("on worker 0 with status 2: error: Failed to fetch")
    assert result.stderr.count("tried again") == 2
    assert result.stdout.splitlines()[-1] == STILL


def test_machines_that_let_nobody_in_end_the_run_with_one_line(cloud):
    cloud.faults(ssh_refused=999)
    result = cloud.run("true", "--ssh_seconds=0.5")
    assert result.returncode == 1
    line = error_line(result)
    assert "copying the checkout failed for 0 s (ERROR: (gcloud.compute.tpus.tpu-vm.scp)" in line
    assert "`gcloud compute tpus tpu-vm ssh mine --zone=us-west4-a` lets you in" in line
    assert result.stdout.splitlines()[-1] == STILL


def test_a_key_that_the_agent_lacks_is_told_at_once(cloud):
    cloud.faults(no_key=True)
    result = cloud.run("true", "--ssh_seconds=60")
    assert 'Please run "ssh-add /home/me/.ssh/google_compute_engine"' in error_line(result)
    assert cloud.verbs().count("tpu-vm scp") == 1


def change(cloud, **values) -> None:
    """Makes another slice of that which is there."""
    state = json.loads((cloud.folder / "state.json").read_text())
    state["slices"]["mine"].update(values)
    (cloud.folder / "state.json").write_text(json.dumps(state))


def test_a_slice_of_that_name_that_is_another_one_is_left_alone(cloud):
    cloud.launch("create", "--accelerator=v5p-128", "--spot")
    other = cloud.run("true", "--spot")
    assert other.returncode == 2
    assert error_line(other) == (
        "error: mine (us-west4-a): is there with --accelerator=v5p-128, not "
        "--accelerator=v5litepod-16; say what it is, take another --name, or end it by `delete`"
    )
    assert other.stdout.splitlines()[-1].startswith("still running: mine (us-west4-a), ACTIVE")
    paid = cloud.launch("create", "--accelerator=v5p-128")
    assert paid.returncode == 2
    assert "is there with --spot=true, not --spot=false; " in error_line(paid)

    change(cloud, labels={"started-by": "somebody"})
    for action, command in (("run", job("true")), ("create", ()), ("delete", ())):
        share = (SHARE,) if action == "run" else ()
        result = cloud.launch(action, "--accelerator=v5p-128", "--spot", *share, command=command)
        assert result.returncode == 2
        assert error_line(result) == (
            "error: mine (us-west4-a): is not of this launcher, its label started-by is somebody, "
            "not langmerge-jax; take another --name"
        )
        assert "delete with" not in result.stdout
    assert "mine" in cloud.alive()
    assert "queued-resources delete" not in cloud.verbs()


def test_a_zone_that_is_none_is_not_called_empty(cloud):
    result = cloud.launch("status", "--zone=us-west9-z")
    assert result.returncode == 2
    assert error_line(result).startswith("error: --zone=us-west9-z: ERROR: ")
    assert "PERMISSION_DENIED: Location us-west9-z is not found" in error_line(result)


TRAIN = ("python", "-m", "langmerge_jax.train", WORKDIR, "--distributed=auto")


@pytest.mark.parametrize(
    ("action", "flags", "command", "line"),
    [
        ("fly", (), (), "'fly': no action; give one of run, create, setup, logs, status, delete"),
        ("run", ("--zone=",), TRAIN, "--zone is missing; run needs it"),
        ("delete", ("--name=",), (), "--name is missing; delete needs it"),
        ("run", ("--name=My_pod",), TRAIN, "--name=My_pod: not a name of Google Cloud"),
        (
            "run",
            ("--zone=europe",),
            TRAIN,
            "--zone=europe: not a zone; give one such as us-west4-a",
        ),
        ("run", ("--accelerator=v5e-16",), TRAIN, "--accelerator=v5e-16: not one of v5litepod, "),
        ("run", (SHARE,), (), "no command; give it behind --"),
        ("create", (), TRAIN, "'python': only `run` takes a command"),
        ("run", (), TRAIN, "v5litepod-16: its machines need one file system; give --share"),
        ("run", ("--spot", "--accelerator=v6e-8"), TRAIN, "--spot: its disk goes with it"),
        ("run", ("--share=10.0.0.2",), TRAIN, "--share=10.0.0.2: not HOST:/PATH"),
        ("run", (SHARE,), (*TRAIN[:3], "--workdir=runs/mine"), "--workdir=runs/mine: is not on"),
        ("run", (SHARE,), TRAIN[:4], "v5litepod-16: has several machines, each of which runs"),
        ("run", ("--retries=-1", SHARE), TRAIN, "flag --retries=-1: "),
        (
            "run",
            ("--delete_after=success", "--accelerator=v5litepod-8"),
            TRAIN,
            "--delete_after: results lie on the machine; give --share",
        ),
    ],
)
def test_bad_input_ends_before_anything_is_asked_for(cloud, action, flags, command, line):
    result = cloud.launch(action, *flags, command=command)
    assert result.returncode == 2, result.stderr
    assert error_line(result).startswith(f"error: {line}")
    assert cloud.calls() == []


def test_without_gcloud_it_says_so(cloud, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("tests.launch.conftest.FAKE", cloud.folder)
    result = cloud.launch("status")
    assert result.returncode == 2
    assert error_line(result).startswith("error: gcloud: not found; install the Google Cloud CLI")
