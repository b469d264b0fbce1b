"""Stands for gcloud: keeps calls, plays a Google Cloud, and runs what is sent over ssh for real.

Under $FAKE_CLOUD lie calls.jsonl, state.json, a home for each machine, and faults.json, which says
what goes wrong:

  workers       machines of a slice, 1 by default
  create        with what creating is refused, one after the other
  unheard       likewise, though it is made
  delete        likewise, deleting
  waiting       so many looks find it waiting for resources
  failed        [code, message] with which it fails instead of becoming active
  ssh_refused   so many connections are refused
  no_key        whether the agent lacks the key that several machines need
  preempt_when  a glob below $FAKE_CLOUD; once it finds a file that is not empty, the slice goes
  dead_when     [number, glob]; likewise, the machine of that number goes silent
  silent_when   a glob; likewise, no machine can be reached any more, and all of them run on
  in_turn       whether each machine is silent at every other look, with two of them one at each
  slices        so many slices, one after the other, have these faults; 1 by default

What it takes and says is that of Google Cloud SDK 528, which test_gcloud.py asks where it is.
"""

import fcntl
import json
import os
import pathlib
import signal
import sys
import time
import types

CLOUD = pathlib.Path(os.environ["FAKE_CLOUD"])
SHARE = CLOUD / "share"
TOOLS = pathlib.Path(__file__).resolve().parent / "machine"
# A real zone without TPUs is refused like one that does not exist.
ZONES = ("us-west4-a",)
COMMON = ("--zone", "--project", "--format", "--quiet")
FURTHER = {
    "queued-resources create": (
        *("--node-id", "--accelerator-type", "--runtime-version", "--spot", "--labels"),
        *("--reserved", "--network"),
    ),
    "queued-resources describe": (),
    "queued-resources delete": ("--force",),
    "queued-resources list": (),
    "tpu-vm describe": (),
    "tpu-vm list": (),
    "tpu-vm ssh": ("--worker", "--command", "--output-directory", "--ssh-flag"),
    "tpu-vm scp": ("--worker", "--scp-flag"),
}
TAKES = {verb: (*COMMON, *flags) for verb, flags in FURTHER.items()}
SWITCHES = ("--spot", "--quiet", "--force", "--reserved")


def end(verb, message, status=1):
    print(f"ERROR: (gcloud.compute.tpus.{verb.replace(' ', '.')}) {message}", file=sys.stderr)
    sys.exit(status)


def attribute(flag):
    return flag.strip("-").replace("-", "_")


def parse(words):
    if words[:2] != ["compute", "tpus"]:
        end("", f"Invalid choice: {words[:1]}", 2)
    verb = " ".join(words[2:4])
    if verb not in TAKES:
        end(verb, "Invalid choice", 2)
    arguments = types.SimpleNamespace(names=[], **dict.fromkeys(map(attribute, TAKES[verb])))
    for word in words[4:]:
        flag, equals, value = word.partition("=")
        if not flag.startswith("--"):
            arguments.names.append(word)
        elif flag not in TAKES[verb] or bool(equals) == (flag in SWITCHES):
            end(verb, f"unrecognized arguments: {word}", 2)
        else:
            setattr(arguments, attribute(flag), value if equals else True)
    if len(arguments.names) != {"tpu-vm scp": 2, "queued-resources list": 0, "tpu-vm list": 0}.get(
        verb, 1
    ):
        end(verb, f"unrecognized arguments: {arguments.names}", 2)
    if not arguments.zone:
        end(verb, "Error parsing [zone].")
    if arguments.zone not in ZONES:
        end(
            verb,
            f"PERMISSION_DENIED: Location {arguments.zone} is not found or access is unauthorized.",
        )
    return verb, arguments


def read(name, default):
    path = CLOUD / name
    return json.loads(path.read_text()) if path.exists() else default


class Cloud:
    """One call sees the cloud at a time: what a slice is and what runs there change together."""

    def __init__(self):
        self.lock = (CLOUD / "lock").open("w")
        fcntl.flock(self.lock, fcntl.LOCK_EX)
        self.state = read("state.json", {"slices": {}, "made": 0, "looks": 0, "counts": {}})
        faults = read("faults.json", {})
        self.workers = faults.get("workers", 1)
        self.faults = faults if self.state["made"] <= faults.get("slices", 1) else {}

    def leave(self):
        """Keeps the state and lets others in; called twice, the second time does nothing."""
        if not self.lock.closed:
            (CLOUD / "state.json").write_text(json.dumps(self.state, indent=1))
            self.lock.close()

    def home(self, number):
        return CLOUD / f"worker{number}"

    def counted(self, what):
        return self.state["counts"].get(what, 0)

    def count(self, what):
        """How often something has happened before; it has now once more."""
        self.state["counts"][what] = self.counted(what) + 1
        return self.counted(what) - 1

    def happens(self, pattern):
        return pattern and any(path.stat().st_size for path in CLOUD.glob(pattern))

    def pass_time(self):
        """What has happened since the last call."""
        for slice_ in self.state["slices"].values():
            if slice_["state"] == "ACTIVE" and self.happens(self.faults.get("preempt_when")):
                slice_["state"] = "SUSPENDED"
                for number in range(self.workers):
                    self.switch_off(number)
            if slice_["state"] in ("CREATING", "WAITING_FOR_RESOURCES"):
                self.state["looks"] += 1
                if self.state["looks"] > self.faults.get("waiting", 0):
                    slice_["state"] = "FAILED" if "failed" in self.faults else "ACTIVE"
                else:
                    slice_["state"] = "WAITING_FOR_RESOURCES"

    def switch_off(self, number):
        """A machine ends: what runs there is told to, killed, and the disk is gone."""
        pid = self.home(number) / ".langmerge_jax/job/pid"
        if pid.exists():
            for with_signal in (signal.SIGTERM, signal.SIGKILL):
                try:
                    os.killpg(int(pid.read_text()), with_signal)
                except ProcessLookupError:
                    break
        # Its import would take longer than most calls.
        import shutil

        shutil.rmtree(self.home(number), ignore_errors=True)

    def away(self, number, command):
        """Whether a machine cannot be reached."""
        if self.happens(self.faults.get("silent_when")):
            return True
        dead, pattern = self.faults.get("dead_when", (None, None))
        if dead == number and self.happens(pattern):
            self.switch_off(number)
            return True
        if self.faults.get("in_turn") and " poll " in command:
            return self.count(f"looks at {number}") % 2 == number % 2
        return not self.home(number).is_dir()


def value(name, slice_):
    node = {
        "acceleratorType": f"projects/p/locations/z/acceleratorTypes/{slice_['accelerator']}",
        "labels": slice_["labels"],
    }
    state = {"state": slice_["state"]}
    if slice_["state"] == "FAILED":
        code, message = cloud.faults["failed"]
        state["failedData"] = {"error": {"code": code, "message": message}}
    return {
        "name": f"projects/p/locations/{slice_['zone']}/queuedResources/{name}",
        "createTime": slice_["created"],
        **({"spot": {}} if slice_["spot"] else {}),
        "state": state,
        "tpu": {"nodeSpec": [{"nodeId": name, "node": node}]},
    }


def node(name, slice_):
    return {
        "name": f"projects/p/locations/{slice_['zone']}/nodes/{name}",
        "acceleratorType": slice_["accelerator"],
        "createTime": slice_["created"],
        "labels": slice_["labels"],
        "networkEndpoints": [{"ipAddress": f"10.0.0.{k}"} for k in range(cloud.workers)],
        "state": "READY",
    }


def refuse(verb, what):
    """Refuses what is at fault, so often as there is something to say to it."""
    texts = cloud.faults.get(what, [])
    if cloud.counted(what) < len(texts):
        end(verb, texts[cloud.count(what)])


def create(verb, arguments):
    name = arguments.names[0]
    refuse(verb, "create")
    if name in cloud.state["slices"]:
        end(verb, "ALREADY_EXISTS: Resource already exists")
    cloud.state["looks"] = 0
    cloud.state["slices"][name] = {
        "state": "CREATING",
        "zone": arguments.zone,
        "accelerator": arguments.accelerator_type,
        "spot": arguments.spot,
        "labels": dict(label.split("=") for label in arguments.labels.split(",")),
        "created": time.strftime("%Y-%m-%dT%H:%M:%S.123456789Z", time.gmtime()),
    }
    for number in range(cloud.workers):
        cloud.home(number).mkdir(parents=True)
    cloud.state["made"] += 1
    refuse(verb, "unheard")


def delete(verb, arguments):
    refuse(verb, "delete")
    slice_ = cloud.state["slices"].pop(arguments.names[0])
    if slice_["state"] == "ACTIVE" and not arguments.force:
        end(verb, "FAILED_PRECONDITION: it has nodes")
    for number in range(cloud.workers):
        cloud.switch_off(number)


def connect(verb):
    # Asked for one machine alone, it takes the key from its file.
    if cloud.faults.get("no_key") and verb == "tpu-vm scp":
        end(
            verb,
            'SSH Key is not present in the SSH agent. Please run "ssh-add '
            '/home/me/.ssh/google_compute_engine" to add it, and try again.',
        )
    if cloud.counted("refused") < cloud.faults.get("ssh_refused", 0):
        cloud.count("refused")
        unreached(verb)


def unreached(verb):
    tool = verb.split()[1]
    print(f"Retrying: {tool.upper()} command error", file=sys.stderr)
    end(verb, f"[/usr/bin/{tool}] exited with return code [255].", 255)


def scp(verb, arguments):
    connect(verb)
    source, target = arguments.names
    assert arguments.worker == "all"
    assert target.endswith(":")
    there = [number for number in range(cloud.workers) if not cloud.away(number, "")]
    for number in there:
        (cloud.home(number) / pathlib.Path(source).name).write_bytes(
            pathlib.Path(source).read_bytes()
        )
    if len(there) < cloud.workers:
        unreached(verb)


def ssh(verb, arguments):
    if arguments.output_directory:
        # It has forgotten the directory that it was given.
        log = "None/0.log"
        end(verb, f"Unable to write file [{log}]: [Errno 2] No such file or directory: '{log}'")
    number = int(arguments.worker)
    if number >= cloud.workers:
        end(
            verb,
            f"Invalid value for [--worker]: worker index {number} is larger than the valid worker "
            "indexes on this TPU VM. Please only use indexes in the range "
            f"[0, {cloud.workers - 1}], inclusive.",
        )
    connect(verb)
    print(f"SSH: Attempting to connect to worker {number}...", file=sys.stderr, flush=True)
    if cloud.away(number, arguments.command):
        unreached(verb)
    # What runs on the machines may take long, and meanwhile others ask.
    cloud.leave()
    environment = {
        **os.environ,
        "HOME": str(cloud.home(number)),
        "PATH": f"{TOOLS}:{os.environ['PATH']}",
        "WORKER": str(number),
        "SHARE": str(SHARE),
    }
    os.chdir(cloud.home(number))
    os.execvpe("bash", ["bash", "-c", arguments.command], environment)


def main():
    verb, arguments = parse(sys.argv[1:])
    with (CLOUD / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(sys.argv[1:]) + "\n")
    cloud.pass_time()
    name = (arguments.names or [""])[0]
    slices = cloud.state["slices"]
    if verb.endswith(" list"):
        make = node if verb.startswith("tpu") else value
        active = [
            x for x in slices.items() if verb.startswith("queued") or x[1]["state"] == "ACTIVE"
        ]
        print(json.dumps([make(*x) for x in active if x[1]["zone"] == arguments.zone]))
    elif verb == "queued-resources create":
        create(verb, arguments)
    elif name.partition(":")[0] not in slices and verb != "tpu-vm scp":
        end(verb, "NOT_FOUND: Resource was not found.")
    elif verb == "queued-resources delete":
        delete(verb, arguments)
    elif verb == "queued-resources describe":
        print(json.dumps(value(name, slices[name])))
    elif not any(x["state"] == "ACTIVE" for x in slices.values()):
        end(verb, "NOT_FOUND: Resource 'nodes' was not found.")
    elif verb == "tpu-vm describe":
        print(json.dumps(node(name, slices[name])))
    elif verb == "tpu-vm scp":
        scp(verb, arguments)
    else:
        ssh(verb, arguments)


cloud = Cloud()
try:
    main()
finally:
    cloud.leave()
