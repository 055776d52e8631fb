#!/usr/bin/env bash
# One torchrun on every node, without a scheduler. On each of the nodes:
#   NODES=2 NODE=0 FIRST=10.0.0.1 OWN=10.0.0.1 torchrun_nodes.sh --config svilm_base run.dir=/shared/run
# NODE counts from 0; FIRST is the address of node 0, OWN that of this node on the same network.
set -euo pipefail
: "${NODES:?number of nodes}" "${NODE:?this node, counted from 0}" "${FIRST:?address of node 0}"
: "${OWN:=$([ "$NODE" = 0 ] && echo "$FIRST")}"
: "${OWN:?address of this node}" "${PORT:=29400}" "${RANKS:=gpu}" "${PYTHON:=python}"
: "${RUN_ID:=svilm}" # must differ between runs with the same first node
# Without these options torchrun guesses from the host name, often wrongly.
meeting=(--rdzv-backend c10d --rdzv-endpoint "$FIRST:$PORT" --rdzv-id "$RUN_ID")
meeting+=(--rdzv-conf "is_host=$([ "$NODE" = 0 ] && echo 1 || echo 0)" --local-addr "$OWN")
exec "$PYTHON" -m svilm_fast.train.launch.torchrun --nnodes "$NODES" --nproc-per-node "$RANKS" \
    "${meeting[@]}" -m svilm_fast.train.pretrain "$@"
