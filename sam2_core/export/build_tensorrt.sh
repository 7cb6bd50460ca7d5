#!/bin/sh
# Build a TensorRT engine from every ONNX graph in this folder, on the machine (and with the TensorRT) that will run it.
#   sh build_tensorrt.sh              float16 where TensorRT finds it faster
#   PRECISION= sh build_tensorrt.sh   float32
#   TRTEXEC=/path/to/trtexec sh build_tensorrt.sh
# A graph whose engine is newer than itself is left out: after a failure, run it again.
set -eu
cd "$(dirname "$0")"

PRECISION=${PRECISION---fp16}
if [ -z "${TRTEXEC:-}" ]; then
    TRTEXEC=$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)  # the second is where JetPack puts it
fi
if [ ! -x "$TRTEXEC" ]; then
    echo "trtexec is not at $TRTEXEC: sudo apt install nvidia-jetpack (or libnvinfer-bin), or set TRTEXEC" >&2
    exit 2
fi

for graph in *.onnx; do
    if [ ! -e "$graph" ]; then
        echo "no ONNX graph in $PWD: write them with sam2_export --onnx $PWD" >&2
        exit 2
    fi
    engine=${graph%.onnx}.engine
    if [ -e "$engine" ] && [ "$engine" -nt "$graph" ]; then
        echo "== $engine is there"
        continue
    fi
    echo "== $graph"
    # PRECISION may be empty or several options
    # shellcheck disable=SC2086
    "$TRTEXEC" --onnx="$graph" --saveEngine="$engine.part" $PRECISION --skipInference --timingCacheFile=timing.cache \
        || { rm -f "$engine.part"; echo "trtexec could not build $graph" >&2; exit 1; }
    mv "$engine.part" "$engine"
done
