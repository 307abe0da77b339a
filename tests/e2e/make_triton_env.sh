#!/usr/bin/env bash
# Make the environment of a real Triton without a container: bash tests/e2e/make_triton_env.sh [FOLDER]
#
# The wheel nvidia-pytriton carries Triton's server with the Python backend. numpy 2 arrays are misread by
# that backend (outputs come back empty), hence an environment of its own. Running it again does nothing.
set -euo pipefail

folder=${1:-.venv-triton}
python=${PYTHON:-python3.11}
started=$SECONDS

if [ -e "$folder/.complete" ] && [ "$folder/.complete" -nt "$0" ]; then
    echo "Triton's environment is complete: $folder"
    exit 0
fi
mkdir -p "$folder"
if [ "$(uname -s)-$(uname -m)" != "Linux-x86_64" ]; then
    echo "No Triton here: the wheel is for Linux on x86_64. Its tests will be skipped."
    exit 0
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    echo "No Triton here: its Python backend needs CPython 3.11 ($python is not). Its tests will be skipped."
    exit 0
fi

rm -rf "$folder"
"$python" -m venv "$folder"
install=("$folder/bin/python" -m pip install --quiet --disable-pip-version-check)
"${install[@]}" 'numpy==1.26.4' 'openvino==2026.4.1' 'onnxruntime==1.31.1'
# Without the dependencies of pytriton's own Python layer: the server needs none of them.
"${install[@]}" --no-deps 'nvidia-pytriton==0.7.0'

site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
server="$site/pytriton/tritonserver"
cp "$server/python_backend_stubs/3.11/triton_python_backend_stub" "$server/backends/python/"
"$folder/bin/python" -c 'import numpy, openvino, onnxruntime'
touch "$folder/.complete"
echo "Triton's environment took $((SECONDS - started)) s: $folder"
