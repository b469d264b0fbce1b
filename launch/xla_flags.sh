#!/usr/bin/env bash
# What XLA is told for a kind of device, to be sourced: . launch/xla_flags.sh gpu|tpu
# What is set already stays. Flags go to XLA_FLAGS; jaxlib ends at once on one that it does not know.
case ${1:-} in
  gpu)
    # Weights that are spread over GPUs are gathered layer by layer; this schedules the gathering of
    # one beside the products of another. XLA leaves it off by default.
    XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_latency_hiding_scheduler=true"
    export XLA_FLAGS
    # Of a GPU's memory jax takes three quarters; a batch that would fit in what it leaves is cut
    # into parts. Not all of it: CUDA's libraries and NCCL allocate beside.
    # Beside its former name jax refuses this one.
    if [ -z "${XLA_PYTHON_CLIENT_MEM_FRACTION:-}" ]; then
      export XLA_CLIENT_MEM_FRACTION=${XLA_CLIENT_MEM_FRACTION:-0.9}
    fi
    ;;
  tpu)
    # Nothing. The flags that are passed on for TPUs, such as xla_enable_async_all_gather and
    # xla_tpu_enable_async_collective_fusion, are on in libtpu 0.0.42: a scan over weights that are
    # spread over a v5e:2x4 compiles to the same program with them and without.
    ;;
  *)
    echo "error: launch/xla_flags.sh ${1:-}: give gpu or tpu" >&2
    # Sourced, only this file ends.
    # shellcheck disable=SC2317
    return 2 2> /dev/null || exit 2
    ;;
esac
