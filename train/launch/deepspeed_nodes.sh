#!/usr/bin/env bash
# The deepspeed launcher on every node of a hostfile, without ssh. On each of the nodes:
#   NODE=0 FIRST=10.0.0.1 deepspeed_nodes.sh hostfile --config svilm_base run.dir=/shared/run
# NODE is this node's line in the hostfile, counted from 0; FIRST is the address of line 0.
set -euo pipefail
: "${NODE:?this node, counted from 0}" "${FIRST:?address of node 0}" "${PORT:=29500}"
: "${PYTHON:=python}"
hostfile=${1:?hostfile}
shift
exec "$PYTHON" -m svilm_fast.train.launch.deepspeed --hostfile "$hostfile" --no_ssh \
    --node_rank "$NODE" --master_addr "$FIRST" --master_port "$PORT" --module svilm_fast.train.pretrain "$@"
