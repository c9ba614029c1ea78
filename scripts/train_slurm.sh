#!/usr/bin/env bash
#SBATCH --job-name=hatfreq
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@180
#SBATCH --output=%x-%j.log
#
# Several nodes under SLURM: one torchrun a node, which meet on the first one. An example to adapt to the cluster.
#
#     sbatch scripts/train_slurm.sh --config configs/stage1_imagenet.yaml --data datasets/ImageNet/train.txt --out runs/stage1
#
# Three minutes before the time is over, SLURM sends this script SIGTERM. It hands it on: train.py writes a checkpoint and
# leaves (torchrun gives it 30 seconds), and the job is put into the queue again, where the same command resumes. Should it
# take longer, the checkpoint before (--save_minutes) is the one to resume from. A job that a preemption or a lost node
# ends is requeued by SLURM itself (--requeue) and resumes from the last checkpoint, too.
#
# A failure is tried again as long as there was a checkpoint since the last one: an error of the hardware passes, while a
# wrong setting or a missing file would fail the same way each time, and ends the job.
#
# PYTHON names the interpreter (default: the one of .venv, which scripts/demo.sh makes), GPUS the processes a node,
# RDZV_PORT the port on which the nodes meet (default: one by the job's number). On nodes with several networks,
# NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME name the interface that joins them.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
PYTHON=${PYTHON:-.venv/bin/python}
GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:-8}}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
[ -n "$first" ] || { echo "error: scontrol names no node for '$SLURM_JOB_NODELIST'" >&2; exit 1; }
out=
for ((i = 1; i <= $#; i++)); do
    case "${!i}" in
    --out) j=$((i + 1)); out=${!j:-} ;;
    --out=*) out=${!i#--out=} ;;
    esac
done
[ -n "$out" ] || { echo "error: name the run folder with --out: its checkpoint tells whether to try again" >&2; exit 1; }
progress() { stat -c %Y "$out/checkpoint.pt" 2>/dev/null || true; }

stopping=
trap 'stopping=1; kill -TERM "$step"' TERM
while true; do
    before=$(progress)
    srun --kill-on-bad-exit=1 "$PYTHON" -m torch.distributed.run \
        --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "$GPUS" --rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID" \
        --rdzv_endpoint "$first:${RDZV_PORT:-$((20000 + SLURM_JOB_ID % 10000))}" train.py "$@" &
    step=$!
    status=0
    wait "$step" || status=$?
    if [ "$stopping" ]; then # the trap ended the first wait: the checkpoint is being written
        wait "$step" || status=$?
        echo "out of time: job $SLURM_JOB_ID goes into the queue again"
        scontrol requeue "$SLURM_JOB_ID"
        break
    fi
    [ "$status" -ne 0 ] && [ "$(progress)" != "$before" ] || break
    echo "failed with status $status after a checkpoint: trying again"
done
exit "$status"
