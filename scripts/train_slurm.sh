#!/usr/bin/env bash
#SBATCH --job-name=hatfreq
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=TERM@180
#SBATCH --output=%x-%j.log
#
# Several nodes under SLURM: one torchrun a node, which meet on the first one. An example to adapt to the cluster.
#
#     sbatch scripts/train_slurm.sh --config configs/stage1_imagenet.yaml --data 'datasets/ImageNet/train/**' --out runs/stage1
#
# Three minutes before the time is over, and when the job is preempted, srun hands SIGTERM on: train.py writes a checkpoint
# and leaves; the requeued job, which is the same command, goes on from there. PYTHON names the interpreter (default: the
# one of .venv, which scripts/demo.sh makes); GPUS the processes a node.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
PYTHON=${PYTHON:-.venv/bin/python}
GPUS=${GPUS:-${SLURM_GPUS_ON_NODE:-8}}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

exec srun --kill-on-bad-exit=1 "$PYTHON" -m torch.distributed.run \
    --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node "$GPUS" --max_restarts 3 \
    --rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID" --rdzv_endpoint "$first:${RDZV_PORT:-29500}" \
    train.py "$@"
