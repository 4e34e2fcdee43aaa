#!/bin/sh
# Builds the emulator with its own kernels and runs its tests: tests/emulator/selftest/run.sh OUT_DIR [argument]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
out=$1
shift
"$here/../build.sh" "$out" "$here" ${VAECF_EMULATOR_FLAGS:-}
out=$(cd "$out" && pwd)
for read in "$here/selftest.cpp" "$out/libcuda.so.1" "$out/libcublasLt.so.13" "$out/libnccl.so.2"; do
    if [ ! -e "$out/selftest" ] || [ "$read" -nt "$out/selftest" ]; then
        # shellcheck disable=SC2086
        ${CXX:-g++} -std=c++17 -O1 -g1 -Wall -Wextra ${VAECF_EMULATOR_FLAGS:-} "$here/selftest.cpp" -o "$out/selftest" \
            "$out/libcuda.so.1" "$out/libcublasLt.so.13" "$out/libnccl.so.2" -Wl,-rpath,"$out"
        break
    fi
done
exec "$out/selftest" "$@"
