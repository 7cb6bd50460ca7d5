#!/bin/sh
# Print the path of a Python for the virtual environment, or print what this machine lacks and how to install it.
# usage: find_python.sh [PYTHON]
fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

machine=$(uname -sm)
[ "$machine" = 'Linux x86_64' ] || fail "This machine is $machine; ROS 2 comes as wheels for Linux x86_64 only." \
    "With ROS 2 installed, build with colcon: docs/install.md."

for compiler in ${CXX:-c++ g++ clang++}; do
    command -v "$compiler" >/dev/null && found_compiler=yes
done
[ "$found_compiler" ] || fail "No C++ compiler (${CXX:-c++, g++ or clang++}), which the ROS 2 messages need." \
    "Debian, Ubuntu: apt install g++"

check='
import sys
if sys.version_info < (3, 10):
    sys.exit("is Python %d.%d, too old" % sys.version_info[:2])
import os, sysconfig
try:
    import ensurepip, venv
except ImportError:
    sys.exit("has no venv (Debian, Ubuntu: apt install python3-venv)")
if not os.path.exists(os.path.join(sysconfig.get_paths()["include"], "Python.h")):
    sys.exit("has no C headers (Debian, Ubuntu: apt install python3-dev)")
'
problems=
for candidate in ${1:-python3 python3.12 python3.11 python3.13 python3.10 python3.14}; do
    path=$(command -v "$candidate") || continue
    if problem=$("$path" -c "$check" 2>&1); then
        echo "$path"
        exit 0
    fi
    problems="$problems
$path $(echo "$problem" | tail -n 1)"
done
fail "No Python 3.10 or newer is usable${1:+ ($1)}; name one with make PYTHON=/path/to/python3.$problems"
