# Sourced by the stages of the submission's training. All of them obey
#
#     DATA      folder of the training sets, laid out as in docs/data.md (default: datasets)
#     RUNS      folder of the run folders (default: runs)
#     GPUS      processes to start, one a GPU (default: all GPUs; without one, a single process on the CPU)
#     PYTHON    interpreter to use (default: .venv, made if need be)
#
# and hand further words to train.py, where they win over the stage's settings.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh
ensure_environment train
DATA=${DATA:-datasets}
RUNS=${RUNS:-runs}

# launch WORDS...: train.py on the GPUs of this machine.
launch() {
    local gpus=${GPUS:-$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')}
    if [ "$gpus" -gt 1 ]; then
        "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$gpus" train.py "$@"
    else
        "$PYTHON" train.py "$@"
    fi
}

# validation: the words that name DIV2K's validation images, where they are.
validation() {
    local folder="$DATA/DIV2K/DIV2K_valid_HR"
    [ ! -d "$folder" ] || printf '%s\n' --valid_hr "$folder"
}

# df2k: the words that name DF2K's images; sub-images, which load faster, where scripts/prepare_data.sh has made them.
df2k() {
    if [ -d "$DATA/DF2K_sub" ]; then
        printf '%s\n' "$DATA/DF2K_sub"
    else
        printf '%s\n' "$DATA/DIV2K/DIV2K_train_HR" "$DATA/Flickr2K/Flickr2K_HR"
    fi
}
