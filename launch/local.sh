#!/usr/bin/env bash
# Runs a command as several processes of one job on this machine:
#
#   launch/local.sh 2 python -m langmerge_jax.train --config=configs/mine.py
#
# Each gets --distributed=localhost:<free port>,<number of processes>,<its number>. Process 0 has the
# terminal; what the others say lies in <workdir>/logs, or in $LOGS.
#
# SIGTERM and SIGINT are passed on as SIGTERM, by which a training saves and ends; a second one kills.
# Ends with status 0 if all did; else with that of a process that failed by itself, or with 143 where
# processes were only killed or ended and the same command goes on. Once one has failed, the others
# have $GRACE seconds (120) to end by themselves: more than --peer_timeout.
set -uo pipefail

usage="error: launch/local.sh ${*:-}: give a number of processes and a command, such as \
launch/local.sh 2 python -m langmerge_jax.train --config=configs/mine.py"
if ! [[ "${1:-}" =~ ^[1-9][0-9]*$ ]] || (($# < 2)); then
    echo "$usage" >&2
    exit 2
fi
count=$1
shift

# As the doors understand them: the last one counts, and without a workdir it is runs/<config>.
workdir='' config='' flag=''
for argument in "$@"; do
    case $flag in
    -workdir | --workdir) workdir=$argument ;;
    -config | --config) config=$argument ;;
    esac
    case $argument in
    -workdir=* | --workdir=*) workdir=${argument#*=} ;;
    -config=* | --config=*) config=${argument#*=} ;;
    esac
    flag=$argument
done
if [[ -z $workdir && -n $config ]]; then
    # What stands behind a colon is handed to the config: configs/mine.py:demo.
    file=${config%%:*} variant=${config#"${config%%:*}"}
    name=${file##*/}
    workdir=runs/${name%.*}${variant:+-${variant#:}}
fi
logs=${LOGS:-${workdir:+$workdir/logs}}
logs=${logs:-$(mktemp -d)}
mkdir -p "$logs" || exit 1

free_port() {
    local port
    while port=$((20000 + RANDOM)); do
        # One that nobody answers at.
        (exec 3<>"/dev/tcp/localhost/$port") 2>/dev/null || break
    done
    echo "$port"
}

pids=() statuses=() asked=0 deadline=
pass_on() {
    local signal=TERM
    ((asked++)) && signal=KILL
    for pid in "${pids[@]}"; do
        kill -s "$signal" "$pid" 2>/dev/null
    done
}
trap pass_on TERM INT
trap 'kill -s KILL "${pids[@]}" 2>/dev/null' EXIT

port=$(free_port)
for ((number = 0; number < count; number++)); do
    given=("$@" "--distributed=localhost:$port,$count,$number")
    if ((number == 0)); then
        "${given[@]}" &
    else
        "${given[@]}" >"$logs/process-$number.log" 2>&1 &
    fi
    pids+=($!)
    statuses+=("")
done

left=$count
while ((left > 0)); do
    sleep 0.2
    for ((number = 0; number < count; number++)); do
        [[ -z ${statuses[number]} ]] || continue
        kill -0 "${pids[number]}" 2>/dev/null && continue
        wait "${pids[number]}"
        statuses[number]=$?
        ((left--))
        ((statuses[number] == 0)) || deadline=${deadline:-$((SECONDS + ${GRACE:-120}))}
    done
    if [[ -n $deadline ]] && ((SECONDS >= deadline)); then
        deadline=$((SECONDS + 10))
        pass_on
    fi
done

trap - EXIT

result=0
for ((number = 0; number < count; number++)); do
    status=${statuses[number]}
    ((status == 0)) && continue
    # By SIGKILL or SIGTERM; where one is gone so, the doors end the others with 143.
    if ((status == 137 || status == 143)); then
        ((result == 0)) && result=143
    elif ((result == 0 || result == 143)); then
        result=$status
    fi
    if ((number > 0 && status != statuses[0])); then
        echo "error: process $number ended with status $status: $logs/process-$number.log" >&2
    fi
done
if ((result != 0 && count > 1)); then
    echo "logs of the other processes: $logs" >&2
fi
if ((result == 143)); then
    echo "error: the job was ended; start the same command again, it goes on" >&2
fi
exit "$result"
