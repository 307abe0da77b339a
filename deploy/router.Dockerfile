# The gateway: no torch, no compiler, no pip of its own, no root. Build from the repository root:
#   docker build -f deploy/router.Dockerfile -t paretogate-router .
# Models are not in the image; mount a published repository at /repository, see set.Dockerfile. Neither are keys
# and certificates: without PARETOGATE_KEYS, PARETOGATE_TLS_CERT and PARETOGATE_TLS_KEY, files that are mounted,
# the gateway refuses to start, unless PARETOGATE_INSECURE=true says that something in front of it sees to that.
# It needs to write to /cache and /tmp alone: --read-only --tmpfs /tmp --mount type=volume,dst=/cache.
#
# To pin the base give its digest: --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:…
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# With it, files that are made here carry no time of their own: --build-arg SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
ARG SOURCE_DATE_EPOCH
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
# Dependencies first: they change less often than the code. Exactly the files of the lock, nothing is resolved.
COPY deploy/locks/ deploy/locks/
RUN python -m venv /opt/build \
    && /opt/build/bin/python -m pip install --no-deps --require-hashes -r deploy/locks/build.txt \
    && python -m venv --without-pip /opt/paretogate \
    && python -m pip --python /opt/paretogate/bin/python install --no-deps --require-hashes \
        -r deploy/locks/router.txt
COPY pyproject.toml README.md LICENSE ./
COPY model_repo/ model_repo/
COPY search/ search/
COPY router/ router/
COPY loadtest/ loadtest/
# The check fails the build where the lock is not closed. What OpenVINO has for GPUs, NPUs and formats other than
# ONNX is a tenth of the image.
RUN /opt/build/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && python -m pip --python /opt/paretogate/bin/python install --no-deps /wheels/*.whl \
    && python -m pip --python /opt/paretogate/bin/python check \
    && find /opt/paretogate/lib/python*/site-packages/openvino/libs -regextype posix-extended \
        -regex '.*/(cache\.json|libopenvino_(intel_[gn]pu_plugin|tensorflow|pytorch|paddle|gguf).*)' -delete

FROM ${PYTHON_IMAGE}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Paretogate router" \
    org.opencontainers.image.description="A serving gateway for object detection over a Pareto set of models" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/paretogate /opt/paretogate
# The gateway's own user, its home (which is /tmp) and its cache: what a short measurement found, kept between starts.
RUN useradd --uid 10001 --no-create-home --home-dir /tmp paretogate \
    && install -d -o paretogate /repository /cache /triton
# With a certificate the health is at https://127.0.0.1:8080/healthz.
ENV PATH=/opt/paretogate/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    PARETOGATE_CACHE=/cache \
    HEALTH_URL=http://127.0.0.1:8080/healthz
USER 10001
EXPOSE 8080 8081 8082
# Rarely: a Python that starts takes time from the models.
HEALTHCHECK --interval=20s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, ssl, urllib.request as u; \
        u.urlopen(os.environ['HEALTH_URL'], timeout=4, context=ssl._create_unverified_context())"]
# Python itself is PID 1: it gets SIGTERM, on which the gateway drains.
STOPSIGNAL SIGTERM
ENTRYPOINT ["python", "-m", "router", "--repo", "/repository", "--host", "0.0.0.0"]
