#!/usr/bin/env bash
# What launch/tpu_pod.py has done on each machine of a slice, over ssh:
#
#   worker.sh setup [HOST:/PATH]      the environment, once a machine, and the share at /mnt/share
#   worker.sh mounted HOST:/PATH      ends with status 78 where another share is there
#   worker.sh start FOLDER COMMAND    begins a command, with a log of its own in FOLDER
#   worker.sh poll OFFSET             how it stands, and its log from that byte on
#   worker.sh log | stop
#
# The command runs by itself, with its status in a file. In an ssh session it would end with the
# connection, and a minute later, for want of its peer, on every other machine.
set -euo pipefail

checkout=$(cd "$(dirname "$0")/.." && pwd)
place=$HOME/.langmerge_jax
venv=$place/venv
job=$place/job
mount=/mnt/share
export PATH=$venv/bin:$place/bin:$PATH

mounted() {
  local there
  there=$(findmnt -no SOURCE "$mount") || return 0
  if [[ ${there%/} != "${1%/}" ]]; then
    echo "error: --share=$1: $mount is $there; give that one, or delete the slice before"
    exit 78
  fi
}

setup() {
  local share=${1:-} wanted left=30
  mkdir -p "$place"
  [[ -z $share ]] || mounted "$share"
  if [[ -n $share ]] && ! mountpoint -q "$mount"; then
    if ! command -v mount.nfs > /dev/null; then
      # A machine that has just begun updates itself, and keeps others out meanwhile.
      until sudo apt-get -qq update || ((--left == 0)); do sleep 10; done
      sudo apt-get -qq -o DPkg::Lock::Timeout=600 install -y nfs-common
    fi
    sudo mkdir -p "$mount"
    sudo mount -t nfs "$share" "$mount"
    # A new share belongs to root.
    [[ -w $mount ]] || sudo chmod 1777 "$mount"
  fi
  wanted=$(cat "$checkout"/{setup.py,requirements.lock} | sha256sum)
  if [[ $(cat "$venv/installed" 2> /dev/null || true) != "$wanted" ]]; then
    # The images of TPU machines have an older Python than this package needs.
    command -v uv > /dev/null || curl -LsSf https://astral.sh/uv/0.13.7/install.sh |
      env UV_INSTALL_DIR="$place/bin" INSTALLER_NO_MODIFY_PATH=1 sh
    uv venv --quiet --clear --python 3.11 "$venv"
    (cd "$checkout" && uv pip install --quiet --python "$venv/bin/python" \
      -c requirements.lock -e '.[tpu]')
    echo "$wanted" > "$venv/installed"
  fi
}

running() {
  [[ -f $job/pid ]] && kill -0 -- "-$(cat "$job/pid")" 2> /dev/null
}

start() {
  local folder=$1
  shift
  [[ $folder == /* ]] || folder=$HOME/$folder
  stop
  rm -rf "$job"
  mkdir -p "$job" "$folder"
  ln -s "$folder/$(date -u +%Y%m%dT%H%M%SZ)-$(hostname).log" "$job/log"
  echo "$*" > "$job/command"
  # Machines need not know a user by one number, and on a share they write into one another's
  # directories.
  umask 000
  setsid bash "$0" attend "$@" < /dev/null > "$job/log" 2>&1 &
  echo $! > "$job/pid"
  # Not left before it has a group of its own, by which it is looked for.
  while kill -0 $! 2> /dev/null && ! running; do sleep 0.01; done
}

# Waits for the command and keeps its status, also when both are sent SIGTERM, as when a machine is
# taken away.
attend() {
  local status=0
  trap : TERM HUP
  cd "$checkout"
  PYTHONUNBUFFERED=1 "$@" || status=$?
  echo "$status" > "$job/status.unfinished"
  mv "$job/status.unfinished" "$job/status"
}

poll() {
  local offset=$1 state=none size=0
  # In this order: a command that ends in between has left its status.
  if running; then state=running; elif [[ -d $job ]]; then state=lost; fi
  if [[ -f $job/status ]]; then state="ended $(cat "$job/status")"; fi
  if [[ -f $job/log ]]; then size=$(stat -Lc %s "$job/log"); fi
  # Here ssh may have written before.
  printf '\n@@ %s @@ %s @@ %s\n' "$state" "$size" "$(cat "$job/command" 2> /dev/null || true)"
  if ((size > offset)); then tail -c "+$((offset + 1))" "$job/log" | head -c "$((size - offset))"; fi
}

log() {
  if [[ -f $job/log ]]; then cat "$job/log"; fi
}

# A command that is told to end has the time to save its step.
stop() {
  local left=100
  if running; then kill -TERM -- "-$(cat "$job/pid")"; fi
  while running && ((left--)); do sleep 1; done
  if running; then kill -KILL -- "-$(cat "$job/pid")"; fi
}

"$@"
