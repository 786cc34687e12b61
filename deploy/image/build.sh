#!/bin/sh
# Builds the image with whatever is here: Docker or Podman if an engine answers, else buildah, which needs none.
#
#   [IMAGE=vpp-dispatch:dev] [BASE=...] [PIP_CONF=pip.conf] [CA=ca.pem] deploy/image/build.sh
#
# PIP_CONF and CA are for a mirror or a proxy. They are there while packages are installed, and in no layer; the CA is
# seen there as /run/secrets/ca.pem, which is what `cert =` in the pip.conf then has to name.
set -eu
cd "$(dirname "$0")/../.."
image=${IMAGE:-vpp-dispatch:dev}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
revision=$(git rev-parse HEAD 2> /dev/null || echo unknown)
set -- --build-arg "VERSION=$version" --build-arg "REVISION=$revision" --tag "$image"
[ -z "${BASE:-}" ] || set -- "$@" --build-arg "BASE=$BASE"
[ -z "${PIP_CONF:-}" ] || set -- "$@" --secret "id=pip.conf,src=$PIP_CONF"
[ -z "${CA:-}" ] || set -- "$@" --secret "id=ca.pem,src=$CA"
if docker info > /dev/null 2>&1; then
    DOCKER_BUILDKIT=1 docker build "$@" .
elif command -v podman > /dev/null; then
    podman build --format docker "$@" .
elif command -v buildah > /dev/null; then
    # chroot: no namespaces are needed. docker: the only format that keeps the health check.
    buildah bud --isolation chroot --format docker --layers "$@" .
else
    echo "No engine answers, and neither podman nor buildah is installed. buildah needs no engine (Debian: apt install buildah)." >&2
    exit 1
fi
echo "$image is built (version $version, revision $revision)."
