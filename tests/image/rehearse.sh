#!/bin/sh
# Builds the worker image and tests it. Called by `make image-test`, which gives ENGINE and IMAGE.
#
# With podman as root it needs no registry: the base image is made here, and the build runs in a chroot.
set -eu
here=$(dirname "$0")
if [ "$ENGINE" = podman ] && [ "$(id -u)" = 0 ]; then
    export CONTAINERS_CONF="$(realpath "$here")/containers.conf"
    podman image exists docker.io/library/python:3.11-slim || podman pull --quiet docker.io/library/python:3.11-slim \
        || sh "$here/base.sh" docker.io/library/python:3.11-slim
    flags=--isolation=chroot
fi
make image ENGINE="$ENGINE" IMAGE="$IMAGE" BUILD_FLAGS="${flags:-}"
export IGNEOUS_AIRFLOW_ENGINE="$ENGINE" IGNEOUS_AIRFLOW_IMAGE="$IMAGE"
.venv/bin/python -m pytest -m image tests/image
# the pods of the test cluster are containers of the image then
.venv/bin/python -m pytest tests/operators/kubernetes/test_pods.py
