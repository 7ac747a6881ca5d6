#!/bin/sh
# Succeeds while the worker of this container is alive: it touches a file every few seconds.
test -n "$(find "${IGNEOUS_AIRFLOW_ALIVE_FILE:-/tmp/worker.alive}" -newermt '-60 seconds' 2>/dev/null)"
