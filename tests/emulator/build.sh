#!/bin/sh
# Builds the stand-ins for libcuda, libcublasLt and libnccl with the kernels of a folder in them.
#
#   tests/emulator/build.sh OUT_DIR KERNELS_DIR [flags for every call of the compiler]
#
# Makes OUT_DIR/libcuda.so.1, OUT_DIR/libcublasLt.so.13 and OUT_DIR/libnccl.so.2, compiling what has changed; prints
# nothing where all is well. With -fsanitize=address among the flags kernels are checked by that instead of by the watch. Reads
#   CXX                      the compiler, g++ where it is not set
#   VAECF_EMULATOR_WITHOUT   names of functions that libcuda or libnccl shall lack, as older ones do
#   VAECF_EMULATOR_FROM      the folder of an earlier build, whose objects are used for what KERNELS_DIR lacks
#   VAECF_EMULATOR_JOBS      how many compilers run at a time, 2 where it is not set
set -eu

out=$1 kernels=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)
prims=$here/../../backend-cuda/kernels
mkdir -p "$out/objects"
out=$(cd "$out" && pwd)
kernels=$(cd "$kernels" && pwd)
cxx=${CXX:-g++}

# One build at a time in a folder.
if command -v flock >/dev/null; then
    exec 9>"$out/lock"
    flock 9
fi

common="-std=c++17 -O2 -g1 -fPIC -Wall -Wextra -Wno-unknown-pragmas $*"
host="$common -O3 -fvisibility=hidden"
# The GPU's compiler lets memory be read as any type, makes no one access of several, and knows no exceptions.
kernel="$common -x c++ -DVAECF_EMULATED -fno-strict-aliasing -fno-tree-vectorize -fno-tree-slp-vectorize"
kernel="$kernel -fno-exceptions -ffp-contract=off -I$here -I$kernels -I$prims"
case " $* " in
*-fsanitize=address*) ;;
*)
    kernel="$kernel -fsanitize=thread"
    if $cxx --param=tsan-instrument-func-entry-exit=0 -E -x c++ /dev/null >/dev/null 2>&1; then
        kernel="$kernel --param=tsan-instrument-func-entry-exit=0"
    fi
    ;;
esac

settings="$cxx | $host | $kernel"
if [ "$(cat "$out/settings" 2>/dev/null)" != "$settings" ]; then
    rm -f "$out"/objects/*
    printf '%s\n' "$settings" >"$out/settings"
fi

# Whether an object is older than anything its compiler read.
stale() {
    [ -e "$1" ] && [ -e "${1%.o}.d" ] || return 0
    for read in $(sed -e 's/^[^:]*://' -e 's/\\$//' "${1%.o}.d"); do
        [ "$read" = "-" ] && continue
        if [ ! -e "$read" ] || [ "$read" -nt "$1" ]; then return 0; fi
    done
    return 1
}

work=$out/work
: >"$work"
cuda= blaslt= nccl=
from=${VAECF_EMULATOR_FROM:-}
if [ -n "$from" ]; then
    for object in "$from"/objects/kernel-*.o; do
        name=$(basename "$object" .o)
        [ -e "$kernels/${name#kernel-}.cu" ] || cuda="$cuda $object"
    done
fi
for source in "$here"/*.cpp; do
    name=$(basename "$source" .cpp)
    object=${from:-$out}/objects/$name.o
    case $name in
    cublaslt) blaslt=$object ;;
    nccl) nccl=$object ;;
    *) cuda="$cuda $object" ;;
    esac
    if stale "$object"; then echo "$cxx $host -MMD -MF ${object%.o}.d -c $source -o $object" >>"$work"; fi
done
for source in "$kernels"/*.cu; do
    name=$(basename "$source" .cu)
    object=$out/objects/kernel-$name.o
    cuda="$cuda $object"
    # In a namespace of its own: on a GPU each file is a program by itself, and may use any name.
    wrapped=${object%.o}.cu
    [ -e "$wrapped" ] || printf '#include "prims.cuh"\nnamespace {\n#include "%s"\n}\n' "$source" >"$wrapped"
    if stale "$object"; then echo "$cxx $kernel -MMD -MF ${object%.o}.d -c $wrapped -o $object" >>"$work"; fi
done
tr '\n' '\0' <"$work" | xargs -0 -r -n 1 -P "${VAECF_EMULATOR_JOBS:-2}" sh -c

version=$out/version
{
    echo '{ global: cu*; nccl*; vaecf_*; local:'
    for name in ${VAECF_EMULATOR_WITHOUT:-}; do echo "$name;"; done
    echo '*; };'
} >"$version.new"
# Linked again where an object or the list of functions is new.
if ! cmp -s "$version.new" "$version" || [ ! -e "$out/libcuda.so.1" ] || [ -s "$work" ] ||
    [ "$(cat "$out/linked" 2>/dev/null)" != "$cuda" ]; then
    # shellcheck disable=SC2086
    $cxx -shared "$@" -Wl,-soname,libcuda.so.1 -Wl,-Bsymbolic -Wl,-z,defs -Wl,--version-script="$version.new" \
        -o "$out/libcuda.so.1.new" $cuda -ldl
    mv "$out/libcuda.so.1.new" "$out/libcuda.so.1"
    $cxx -shared "$@" -Wl,-soname,libcublasLt.so.13 -Wl,-Bsymbolic -Wl,-z,defs -Wl,-rpath,'$ORIGIN' \
        -o "$out/libcublasLt.so.13.new" $blaslt "$out/libcuda.so.1"
    mv "$out/libcublasLt.so.13.new" "$out/libcublasLt.so.13"
    $cxx -shared "$@" -Wl,-soname,libnccl.so.2 -Wl,-Bsymbolic -Wl,-z,defs -Wl,--version-script="$version.new" \
        -Wl,-rpath,'$ORIGIN' -o "$out/libnccl.so.2.new" $nccl "$out/libcuda.so.1"
    mv "$out/libnccl.so.2.new" "$out/libnccl.so.2"
    mv "$version.new" "$version"
    printf '%s\n' "$cuda" >"$out/linked"
fi
# The names that are asked for first, lest a driver of this machine answer to them.
ln -sf libcuda.so.1 "$out/libcuda.so"
ln -sf libcublasLt.so.13 "$out/libcublasLt.so"
rm -f "$version.new" "$work"
