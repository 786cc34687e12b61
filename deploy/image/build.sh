#!/bin/sh
# Builds the image with whatever is here: Docker or Podman if an engine answers, else buildah, which needs none.
#
#   [IMAGE=vpp-dispatch:dev] [BASE=...] [REQUIRE_DIGEST=1] [SOURCE=https://...] [PIP_CONF=pip.conf] [CA=ca.pem] \
#       [SBOM=out/sbom.cdx.json] deploy/image/build.sh
#
# PIP_CONF and CA are for a mirror or a proxy. They are there while packages are installed, and in no layer; the CA is
# seen there as /run/secrets/ca.pem, which is what `cert =` in the pip.conf then has to name. All of it: docs/image.md.
set -eu
cd "$(dirname "$0")/../.."
image=${IMAGE:-vpp-dispatch:dev}
sbom=${SBOM:-out/sbom.cdx.json}
base=${BASE:-$(sed -n 's/^ARG BASE=\(.*\)/\1/p' Dockerfile)}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
revision=$(git rev-parse HEAD 2> /dev/null || echo unknown)
created=$(TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2> /dev/null || echo 1970-01-01T00:00:00Z)
case $base in
    *@sha256:*) ;;
    *) if [ -n "${REQUIRE_DIGEST:-}" ]; then
        echo "The base $base has no digest, and REQUIRE_DIGEST is set: name it as $base@sha256:... (docs/image.md)." >&2
        exit 1
    fi ;;
esac
set -- --build-arg "BASE=$base" --build-arg "VERSION=$version" --build-arg "REVISION=$revision" --build-arg "CREATED=$created" --tag "$image"
[ -z "${SOURCE:-}" ] || set -- "$@" --label "org.opencontainers.image.source=$SOURCE"
[ -z "${PIP_CONF:-}" ] || set -- "$@" --secret "id=pip.conf,src=$PIP_CONF"
[ -z "${CA:-}" ] || set -- "$@" --secret "id=ca.pem,src=$CA"
mkdir -p "$(dirname "$sbom")"
inside=/opt/vpp-dispatch/sbom.cdx.json
if docker info > /dev/null 2>&1; then
    DOCKER_BUILDKIT=1 docker build "$@" .
    container=$(docker create "$image")
    docker cp "$container:$inside" "$sbom"
    docker rm "$container" > /dev/null
elif command -v podman > /dev/null; then
    podman build --format docker "$@" .
    container=$(podman create "$image")
    podman cp "$container:$inside" "$sbom"
    podman rm "$container" > /dev/null
elif command -v buildah > /dev/null; then
    # chroot: no namespaces are needed. docker: the only format that keeps the health check.
    buildah bud --isolation chroot --format docker --layers "$@" .
    container=$(buildah from "$image")
    cp "$(buildah mount "$container")$inside" "$sbom"
    buildah rm "$container" > /dev/null
else
    echo "No engine answers, and neither podman nor buildah is installed. buildah needs no engine (Debian: apt install buildah)." >&2
    exit 1
fi
echo "$image is built (version $version, revision $revision); what it is made of is in $sbom."
