#!/bin/sh
# A base image without a registry: a minimal Debian with its own Python, by debootstrap and buildah. Needs root.
#
#   deploy/image/local-base.sh [NAME [SUITE [MIRROR]]]    without a mirror: debootstrap's own
#
# Then: deploy/image/build.sh with BASE=localhost/NAME.
set -eu
name=${1:-vpp-dispatch-base}
suite=${2:-bookworm}
mirror=${3:-}
for tool in debootstrap buildah tar; do
    command -v "$tool" > /dev/null || { echo "$tool is not installed (Debian: apt install $tool)." >&2; exit 1; }
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$folder/root" ${mirror:+"$mirror"}
tar -C "$folder/root" --exclude './var/cache/apt/*' --exclude './var/lib/apt/lists/*' -cf "$folder/root.tar" .
container=$(buildah from scratch)
buildah add --quiet "$container" "$folder/root.tar" / > /dev/null
buildah config --cmd /bin/bash --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
buildah commit --quiet --rm "$container" "$name" > /dev/null
echo "localhost/$name is there: Debian $suite with $(chroot "$folder/root" python3 --version)."
