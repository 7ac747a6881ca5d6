#!/bin/sh
# Makes a virtual environment with a package and its dependencies, at the locked versions and hashes.
#
#     install.sh FOLDER REQUIREMENT     with requirements.lock in the current folder
set -eu
folder=$1
requirement=$2

if [ -f /run/secrets/ca ]; then
    export SSL_CERT_FILE=/run/secrets/ca PIP_CERT=/run/secrets/ca
fi
if [ -f /run/secrets/index ]; then
    UV_DEFAULT_INDEX=$(cat /run/secrets/index)
    export UV_DEFAULT_INDEX PIP_INDEX_URL="$UV_DEFAULT_INDEX"
fi

# the installer too is one of the locked packages, with its hashes
python3 -m venv installer
awk '/^uv==/ { found = 1 } found { print } found && !/\\$/ { exit }' requirements.lock > uv.txt
installer/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement uv.txt

python3 -m venv --without-pip "$folder"
installer/bin/uv pip install --quiet --python "$folder/bin/python3" --no-cache --compile-bytecode \
    --constraint requirements.lock --build-constraint requirements.lock "$requirement"
