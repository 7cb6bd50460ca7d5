#!/bin/sh
# Build a TensorRT engine from every ONNX graph in this folder. Run it on the target machine: an engine fits only the
# GPU and the TensorRT version with which it was built.
#   sh build_tensorrt.sh              float16 where TensorRT finds it faster
#   PRECISION= sh build_tensorrt.sh   float32
#   TRTEXEC=/path/to/trtexec sh build_tensorrt.sh
# Graphs with an engine that is newer than the graph are skipped, so after a failure, run the script again.
set -eu
cd "$(dirname "$0")"

PRECISION=${PRECISION---fp16}
if [ -z "${TRTEXEC:-}" ]; then
    TRTEXEC=$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)  # JetPack installs it there, not in PATH
fi
if [ ! -x "$TRTEXEC" ]; then
    echo "trtexec is not at $TRTEXEC: sudo apt install nvidia-jetpack (or libnvinfer-bin), or set TRTEXEC" >&2
    exit 2
fi

for graph in *.onnx; do
    if [ ! -e "$graph" ]; then
        echo "no ONNX graph in $PWD: write graphs with sam2_export --onnx $PWD" >&2
        exit 2
    fi
    engine=${graph%.onnx}.engine
    if [ -e "$engine" ] && [ "$engine" -nt "$graph" ]; then
        echo "== $engine is up to date"
        continue
    fi
    echo "== $graph"
    # PRECISION may be empty or hold several options.
    # shellcheck disable=SC2086
    "$TRTEXEC" --onnx="$graph" --saveEngine="$engine.part" $PRECISION --skipInference --timingCacheFile=timing.cache \
        || { rm -f "$engine.part"; echo "trtexec could not build $graph" >&2; exit 1; }
    mv "$engine.part" "$engine"
done
