#!/usr/bin/env bash
# From a fresh clone to a first x4 restoration: real photographs -> low resolution -> restored -> scored -> a picture.
#
#     bash scripts/demo.sh
#
# Needs Python >= 3.10, git and a network for the packages; no GPU (one is used if it is there). Everything it makes
# is in .venv/ and demo/.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
ensure_environment demo

say "1/4  Photographs from scikit-image -> demo/HR, and x1/4 by MATLAB's bicubic -> demo/LR"
"$PYTHON" -m scripts.export_photographs demo/HR
"$PYTHON" -m scripts.make_lr demo/HR demo/LR

say "2/4  Restoring x4: bicubic, then HATFreq-light with the x8 self-ensemble"
"$PYTHON" test.py --model_id 0 --test_dir demo/LR --save_dir demo/results
"$PYTHON" test.py --model_id 8 --test_dir demo/LR --save_dir demo/results

say "3/4  Scoring"
for name in 00_Bicubic 08_HATFreq; do
    "$PYTHON" eval.py --output_folder "demo/results/$name/test" --target_folder demo/HR --lq_folder demo/LR \
        --metrics psnr,ssim --metrics_save_path demo/IQA_results
done

say "4/4  Result (PSNR in dB and SSIM on Y, mean over the photographs)"
for name in 00_Bicubic 08_HATFreq; do
    awk -F': ' -v name="$name" '{value[$1] = $2} END {printf "%-12s PSNR %.2f dB   SSIM %.4f\n", name, value["psnr"], value["ssim"]}' \
        "demo/IQA_results/$name--test.txt"
done
echo
echo "Look at:  demo/IQA_results/08_HATFreq--test_comparison.png"
echo "          demo/IQA_results/08_HATFreq--test_spectrum.png"
echo "Restored: demo/results/08_HATFreq/test/"
