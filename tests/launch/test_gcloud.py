"""What gcloud itself does with the launcher's commands, over a Google Cloud that answers here."""

import getpass
import http.server
import json
import pathlib
import shutil
import subprocess
import threading

import pytest

from launch import gcloud
from tests.launch.conftest import FAKE

needs_gcloud = pytest.mark.skipif(
    shutil.which("gcloud") is None or shutil.which("ssh-keygen") is None,
    reason="the Google Cloud CLI or ssh-keygen is not installed",
)
SLICE = gcloud.Slice("mine", "us-west4-a", "p", "v5litepod-16", spot=True)
RATE = (
    "Quota exceeded for quota metric 'Create requests' and limit 'Create requests per minute' of "
    "service 'tpu.googleapis.com' for consumer 'project_number:1'."
)
REFUSALS = {
    "us-west9-z": (
        *(403, "PERMISSION_DENIED"),
        "Location us-west9-z is not found or access is unauthorized.",
    ),
    "us-west4-b": (429, "RESOURCE_EXHAUSTED", RATE),
}


class Api(http.server.BaseHTTPRequestHandler):
    """Answers for Cloud TPU and Compute Engine; what is asked of a zone says how."""

    def do_GET(self):
        length = int(self.headers.get("content-length") or 0)
        asked = json.loads(self.rfile.read(length) or "{}")
        status, value = 200, {}
        zone = self.path.split("/")[5] if "/locations/" in self.path else ""
        if zone in REFUSALS:
            status, name, text = REFUSALS[zone]
            value = {"error": {"code": status, "status": name, "message": text}}
        elif "/compute/" in self.path:
            keys = {"key": "ssh-keys", "value": self.server.key}
            value = {"name": "p", "commonInstanceMetadata": {"items": [keys]}}
        elif "getGuestAttributes" in self.path:
            items = [{"key": "ssh-ed25519", "value": "AAAAkey"}]
            value = {
                "guestAttributes": [{"queryValue": {"items": items}} for _ in asked["workerIds"]]
            }
        elif "/nodes/mine" in self.path:
            places = [{"ipAddress": f"10.0.0.{number}"} for number in range(2)]
            value = {"name": "projects/p/locations/us-west4-a/nodes/mine", "state": "READY"}
            value |= {"apiVersion": "V2", "networkEndpoints": places}
        said = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def google(tmp_path, monkeypatch):
    """gcloud asks a server here, is somebody, and finds an ssh that stays here."""
    key = tmp_path / ".ssh/google_compute_engine"
    key.parent.mkdir(mode=0o700)
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", key], check=True)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Api)
    server.key = f"{getpass.getuser()}:{key.with_suffix('.pub').read_text().strip()} "
    server.key += getpass.getuser()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    ssh = tmp_path / "bin/ssh"
    ssh.parent.mkdir()
    # The address is the last word before --, behind it stands the command.
    ssh.write_text(
        "#!/bin/bash\nwhile [[ $1 != -- ]]; do TO=${1#*@}; shift; done\nshift\n"
        'TO=$TO exec bash -c "$*"\n'
    )
    ssh.chmod(0o755)
    (tmp_path / "token").write_text("token")
    place = f"http://127.0.0.1:{server.server_port}"
    settings = {
        "HOME": tmp_path,
        "PATH": f"{ssh.parent}:{pathlib.Path(shutil.which('gcloud')).parent}:/usr/bin:/bin",
        "CLOUDSDK_CONFIG": tmp_path,
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
        "CLOUDSDK_AUTH_ACCESS_TOKEN_FILE": tmp_path / "token",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_TPU": f"{place}/",
        "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": f"{place}/compute/v1/",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, str(value))
    yield
    server.shutdown()
    server.server_close()


@needs_gcloud
def test_each_machine_is_heard_by_itself(google):
    says = 'echo "of $TO"; echo "and  why" >&2; test "$TO" = 10.0.0.0 || exit 3'
    answers = gcloud.run_each([gcloud.ssh(SLICE, says, number) for number in range(2)], 60)
    assert [answer.status for answer in answers] == [0, 3], answers
    assert [answer.output for answer in answers] == [
        b"of 10.0.0.0\nand  why\n",
        b"of 10.0.0.1\nand  why\n",
    ]
    assert answers[1].failed_there()
    assert answers[1].last_words() == "and  why"


@needs_gcloud
def test_a_zone_is_refused_as_the_tests_play_it(google, cloud, monkeypatch):
    asked = gcloud.list_all(gcloud.Slice("any", "us-west9-z", "p"), "queued-resources")
    answer = gcloud.run(asked, 60)
    assert answer.status == 1
    assert answer.is_final()
    monkeypatch.setenv("FAKE_CLOUD", str(cloud.folder))
    for name, value in cloud.environment().items():
        monkeypatch.setenv(name, value)
    played = gcloud.run([str(FAKE / "gcloud"), *asked[1:]], 60)
    # It also says by what it knows who one is.
    assert answer.complaint().startswith(played.complaint())


@needs_gcloud
def test_a_rate_is_told_from_a_quota(google):
    answer = gcloud.run(gcloud.create(gcloud.Slice("a", "us-west4-b", "p", "v4-8")), 60)
    assert answer.complaint().endswith(f"RESOURCE_EXHAUSTED: {RATE}")
    assert not answer.is_final()
