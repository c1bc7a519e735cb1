#!/bin/sh
# Installs one peer, pinned by version, below $XDG_CACHE_HOME/windlass-bench, and prints what it installed.
#
#   setup.sh redis|postgres|slurm|docker|podman|bubblewrap|node|python
#
# Running it again does nothing. Nothing of the system changes: Debian packages are unpacked into a folder, so that
# no service is registered or started, and no root is needed. The last line of standard error says why it failed.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/windlass-bench
peer=${1:?name a peer}
folder=$cache/$peer

fail() {
    echo "$*" >&2
    exit 1
}

# Is what is there what these pins would install? Otherwise begins anew.
begin() {
    pins=$1
    if [ -f "$folder.installed" ] && [ "$(cat "$folder.pins")" = "$pins" ]; then
        cat "$folder.installed"
        exit 0
    fi
    rm -rf "$folder" "$folder.installed"
    mkdir -p "$folder"
    echo "$pins" >"$folder.pins"
}

finish() {
    echo "$1" >"$folder.installed.new"
    mv "$folder.installed.new" "$folder.installed"
    cat "$folder.installed"
}

# Unpacks the Debian packages (name=version, with wildcards) and whatever of their dependencies the system lacks.
debian() {
    begin "$*"
    archives=$folder.archives
    mkdir -p "$archives/partial"
    download() {
        apt-get install --yes --quiet --download-only --reinstall --allow-downgrades --no-install-recommends \
            -o Debug::NoLocking=1 -o Dir::Cache::archives="$archives" "$@" >"$folder.log" 2>&1
    }
    if ! download "$@"; then
        if [ "$(id -u)" = 0 ]; then
            apt-get update >>"$folder.log" 2>&1 || true
        fi
        download "$@" || fail "apt-get: $(grep '^E:' "$folder.log" | head -n 1)"
    fi
    installed=
    for archive in "$archives"/*.deb; do
        dpkg-deb --extract "$archive" "$folder" || fail "cannot unpack $archive"
        name=$(dpkg-deb --field "$archive" Package)
        for pin in "$@"; do
            if [ "${pin%%=*}" = "$name" ]; then
                installed="$installed $name $(dpkg-deb --field "$archive" Version)"
            fi
        done
    done
    rm -r "$archives"
    finish "${installed# }"
}

case $peer in
redis)
    debian 'redis-server=5:7.0.15*' 'redis-tools=5:7.0.15*'
    ;;
postgres)
    debian 'postgresql-15=15.*' 'postgresql-client-15=15.*' 'libpq5=15.*'
    ;;
slurm)
    debian 'slurmctld=22.05.8*' 'slurmd=22.05.8*' 'slurm-client=22.05.8*' 'slurm-wlm-basic-plugins=22.05.8*' \
        'munge=0.5.15*' 'libmunge2=0.5.15*'
    ;;
docker)
    debian 'docker.io=20.10.24*' 'containerd=1.6.20*' 'runc=1.1.5*' 'busybox-static=1:1.35.0*'
    ;;
podman)
    debian 'podman=4.3.1*' 'conmon=2.1.6*' 'golang-github-containers-common=0.50.1*'
    ;;
bubblewrap)
    debian 'bubblewrap=0.8.0*'
    ;;
node)
    command -v npm >/dev/null || fail "npm is not installed; it comes with Node.js 20 or later"
    major=$(node --print 'process.versions.node.split(".")[0]')
    [ "$major" -ge 20 ] || fail "Node.js 20 or later is needed, this is $major"
    begin "node $major $(cat "$here/package.json")"
    cp "$here/package.json" "$folder"
    # better-sqlite3 is compiled against the headers beside this Node.js where there are some.
    prefix=$(dirname "$(dirname "$(readlink -f "$(command -v node)")")")
    if [ -f "$prefix/include/node/node.h" ]; then
        export npm_config_nodedir="$prefix"
    fi
    (cd "$folder" && npm install --no-package-lock --no-audit --no-fund) >"$folder.log" 2>&1 ||
        fail "npm: $(grep 'npm error' "$folder.log" | tail -n +2 | head -n 1)"
    finish "$(cd "$folder" && node --print '
        ["plainjob", "better-sqlite3", "bullmq", "graphile-worker", "pg-boss"]
            .map((name) => `${name} ${require(`./node_modules/${name}/package.json`).version}`).join(" ")
    ') node $(node --version)"
    ;;
python)
    command -v python3 >/dev/null || fail "python3 is not installed"
    begin "$(python3 --version) $(cat "$here/requirements.txt")"
    python3 -m pip install --quiet --target "$folder" --requirement "$here/requirements.txt" \
        >"$folder.log" 2>&1 || fail "pip: $(grep -i error "$folder.log" | head -n 1)"
    finish "$(tr '\n' ' ' <"$here/requirements.txt" | sed 's/==/ /g')$(python3 --version)"
    ;;
*)
    fail "unknown peer $peer"
    ;;
esac
