#!/bin/sh
# Makes a stand-in for the official image python:3.11-slim where no registry can be reached.
#
#     base.sh NAME     as root, on Debian or Ubuntu, with debootstrap and podman
set -eu
name=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
# libpython3-dev: the official image has Python's headers too
debootstrap --variant=minbase --include=python3,python3-venv,libpython3-dev,ca-certificates bookworm "$folder"
rm -rf "$folder"/usr/lib/python3*/config-*/*.a "$folder"/usr/lib/x86_64-linux-gnu/libpython*.a \
    "$folder"/var/cache/apt/archives/*.deb "$folder"/var/lib/apt/lists/* "$folder"/usr/share/doc/*
tar -C "$folder" -c . | podman import - "$name"
