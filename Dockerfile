# One worker of the service: `vpp-dispatch run` by default, and every other command of it. docs/image.md says how to build and run it.
#
# Every stage stands on the same base, so that the interpreter that compiled the bytecode is the one that runs it. Any
# Debian-like image with Python 3.11 or newer and its venv module does: --build-arg BASE=...
# This line is the place for a digest, after the tag: python:...@sha256:... (docs/image.md says how to look it up).
ARG BASE=python:3.11.14-slim-bookworm

# ---------------------------------------------------------------- what is installed: the lock, by hash, wheels only
FROM ${BASE} AS dependencies
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PIP_NO_COMPILE=1
# The tools live in a venv of their own; what is shipped has no pip in it.
RUN python3 -m venv /opt/tools && python3 -m venv --without-pip /opt/vpp-dispatch
WORKDIR /build
COPY requirements.lock ./
# A mirror, a proxy's CA or a login for either comes in as a secret: it is there while this runs, and in no layer.
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    /opt/tools/bin/pip --python /opt/vpp-dispatch/bin/python install --only-binary :all: --require-hashes -r requirements.lock
# Nobody runs the packages' own tests there, or links against them. unchecked-hash: nothing is compared, or written, when it
# starts; so timestamps do not matter and the root may be read-only.
RUN find /opt/vpp-dispatch/lib -type d \( -name tests -o -name test \) -prune -exec rm -rf {} + \
    && find /opt/vpp-dispatch/lib -name '*.a' -delete \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /opt/vpp-dispatch/lib

# ---------------------------------------------------------------- our own package, in a tree of its own: a thin layer
FROM dependencies AS package
COPY requirements-dev.lock ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    sed -n '/^setuptools==/,/[^\\]$/p' requirements-dev.lock > tools.lock \
    && /opt/tools/bin/pip install --only-binary :all: --require-hashes -r tools.lock
COPY pyproject.toml README.md LICENSE ./
COPY vpp_dispatch ./vpp_dispatch
RUN /opt/tools/bin/pip wheel --no-deps --no-build-isolation --no-index --wheel-dir /dist . \
    && /opt/tools/bin/pip --python /opt/vpp-dispatch/bin/python install --no-deps --no-index --root /package /dist/*.whl \
    && python3 -m compileall -q --invalidation-mode unchecked-hash /package

# ---------------------------------------------------------------- what it is made of (CycloneDX), read from what was installed
FROM package AS sbom
COPY deploy/image/sbom.lock ./
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.pem,target=/run/secrets/ca.pem \
    /opt/tools/bin/pip install --only-binary :all: --require-hashes -r sbom.lock
RUN cp -a /package/. / && /opt/tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible \
    --output-file /sbom.cdx.json /opt/vpp-dispatch/bin/python

# ---------------------------------------------------------------- what is shipped
FROM ${BASE}
ARG BASE
ARG VERSION=0.1.0
ARG REVISION=unknown
# The commit's time and not the clock's, so that the same commit is told the same.
ARG CREATED=1970-01-01T00:00:00Z
LABEL org.opencontainers.image.title="vpp-dispatch" \
      org.opencontainers.image.description="Dispatch signals of a grid operator, carried out on a fleet of GoodWe inverters, verified and accounted for" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${BASE}"
RUN useradd --no-log-init --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin --uid 10001 --user-group vpp-dispatch \
    && install -d -m 0750 -o 10001 -g 10001 /var/lib/vpp-dispatch
# Of the base, what installs and what changes the user is of no use to a worker. Whatever is not there is passed over.
RUN find / -xdev -type f -perm /6000 -exec chmod a-s {} + \
    && rm -rf /usr/local/bin/pip* /usr/local/bin/wheel /usr/local/bin/idle* /usr/local/bin/2to3* /usr/share/python-wheels \
        /usr/local/lib/python3*/ensurepip /usr/local/lib/python3*/idlelib /usr/local/lib/python3*/lib2to3 /usr/lib/python3*/ensurepip \
        /usr/local/lib/python3*/site-packages/pip /usr/local/lib/python3*/site-packages/pip-* \
        /usr/local/lib/python3*/site-packages/setuptools* /usr/local/lib/python3*/site-packages/pkg_resources \
        /usr/local/lib/python3*/site-packages/_distutils_hack /usr/local/lib/python3*/site-packages/distutils-precedence.pth \
        /usr/local/lib/python3*/site-packages/wheel*
COPY --from=dependencies /opt/vpp-dispatch /opt/vpp-dispatch
COPY --from=package /package /
COPY --from=sbom --chmod=0444 /sbom.cdx.json /opt/vpp-dispatch/sbom.cdx.json
COPY --chmod=0444 deploy/image/healthcheck.py /opt/vpp-dispatch/healthcheck.py
ENV PATH=/opt/vpp-dispatch/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
# By number, so that Kubernetes can see that it is not root (runAsNonRoot).
USER 10001:10001
WORKDIR /var/lib/vpp-dispatch
# Break-glass files. All else may be read-only, with a tmpfs on /tmp.
VOLUME /var/lib/vpp-dispatch
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 \
    CMD ["/opt/vpp-dispatch/bin/python", "-I", "-S", "/opt/vpp-dispatch/healthcheck.py"]
ENTRYPOINT ["/opt/vpp-dispatch/bin/vpp-dispatch"]
CMD ["run"]
