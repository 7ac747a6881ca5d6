#!/usr/bin/env bash
# Installs what the tests in tests/e2e need of Debian, where it is missing: as root, in continuous integration.
# Java with Maven and Go are expected; the tests fetch ElasticMQ and versitygw with them.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
major=$(sed -nE 's/^ +image: postgres:([0-9]+).*/\1/p' "$root/docker-compose.yml")

if [ ! -x "/usr/lib/postgresql/$major/bin/initdb" ]; then
    # no server of the system's own: the tests start one where they want it
    mkdir -p /etc/postgresql-common
    [ -e /etc/postgresql-common/createcluster.conf ] || echo 'create_main_cluster = false' > /etc/postgresql-common/createcluster.conf
    apt-get update -qq
    apt-get install --yes -qq --no-install-recommends "postgresql-$major"
fi

if ! command -v strace > /dev/null; then
    apt-get update -qq
    apt-get install --yes -qq --no-install-recommends strace
fi

# compose 2, a program without dependencies, is in later releases of Debian only
compose="$root/.bench/services/docker-compose"
if ! docker compose version > /dev/null 2>&1 && [ ! -x "$compose" ]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work"/{lists,cache}/partial "$work/cache/archives/partial" "$(dirname "$compose")"
    keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mirror=$(sed -nE 's/^URIs: +//p' /etc/apt/sources.list.d/debian.sources | head -n 1)
    echo "deb [signed-by=$keyring] $mirror trixie main" > "$work/sources.list"
    apt=(-qq -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=- -o "Dir::State::lists=$work/lists"
        -o "Dir::Cache=$work/cache" -o Acquire::Languages=none -o APT::Sandbox::User=root)
    apt-get "${apt[@]}" update
    (cd "$work" && apt-get "${apt[@]}" download docker-compose && dpkg -x docker-compose_*.deb unpacked)
    mv "$work/unpacked/usr/libexec/docker/cli-plugins/docker-compose" "$compose"
fi
