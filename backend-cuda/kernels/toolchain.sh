#!/usr/bin/env bash
# The compiler that `kernels` uses, and a disassembler, into a folder: toolchain.sh FOLDER
# Needs python3 with pip, about 130 MB of disk, and Linux on x86-64. Where the folder is as it should be, nothing
# happens.
set -euo pipefail

[ $# = 1 ] || { echo "usage: toolchain.sh FOLDER" >&2; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)

# NVRTC 12.9, because what it compiles runs on all drivers from R525 on; that of 13 asks for R580. Other versions
# make other bytes, so these are pinned to theirs. A disassembler by itself exists from 13.2 on, and reads both.
wheels="\
nvidia-cuda-nvrtc-cu12==12.9.86 --hash=sha256:210cf05005a447e29214e9ce50851e83fc5f4358df8b453155d5e1918094dcb4
nvidia-cuda-nvdisasm==13.2.86 --hash=sha256:53606e719ecae07a2335f95902d5a1393a0cc1c317499ee7ffcf628a44385f2c"
[ "$(cat "$folder/wheels.txt" 2>/dev/null)" != "$wheels" ] || exit 0

work=$(mktemp -d "$folder/tmp.XXXXXX")
trap 'rm -rf "$work"' EXIT
echo "$wheels" > "$work/wheels.txt"
python3 -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: \
    --require-hashes --requirement "$work/wheels.txt" --dest "$work/wheels"
for wheel in "$work"/wheels/*.whl; do
    python3 -m zipfile -e "$wheel" "$work/unpacked"
done
mv -f "$work"/unpacked/nvidia/cuda_nvrtc/lib/libnvrtc.so.12 "$folder/"
mv -f "$work"/unpacked/nvidia/cuda_nvrtc/lib/libnvrtc-builtins.so.12.9 "$folder/"
mv -f "$work"/unpacked/nvidia/cu13/bin/nvdisasm "$folder/"
chmod +x "$folder/nvdisasm"
# Last, because it says that all is there.
mv -f "$work/wheels.txt" "$folder/"
