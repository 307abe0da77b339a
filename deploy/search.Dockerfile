# The search with CPU torch. Build from the repository root:
#   docker build -f deploy/search.Dockerfile -t paretogate-search .
#   docker run --rm --read-only --tmpfs /tmp -v "$PWD/data:/data:ro" -v paretogate:/work paretogate-search --help
# To pin the base give its digest: --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:…
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# Where torch comes from, by its version alone. The index of CPU builds keeps gigabytes of CUDA libraries out of the
# image; give the index of the CUDA version of your driver to train on a GPU.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
ARG SOURCE_DATE_EPOCH
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
WORKDIR /source
COPY deploy/locks/ deploy/locks/
# What the build of torch for CPUs needs is in the lock: of its index nothing else is taken.
RUN python -m venv /opt/build \
    && /opt/build/bin/python -m pip install --no-deps --require-hashes -r deploy/locks/build.txt \
    && python -m venv --without-pip /opt/paretogate \
    && python -m pip --python /opt/paretogate/bin/python install --no-deps --require-hashes \
        -r deploy/locks/search.txt \
    && python -m pip --python /opt/paretogate/bin/python install --index-url "${TORCH_INDEX_URL}" \
        torch==2.13.0
COPY pyproject.toml README.md LICENSE ./
COPY model_repo/ model_repo/
COPY search/ search/
COPY router/ router/
COPY loadtest/ loadtest/
RUN /opt/build/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && python -m pip --python /opt/paretogate/bin/python install --no-deps /wheels/*.whl \
    && python -m pip --python /opt/paretogate/bin/python check

FROM ${PYTHON_IMAGE}
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Paretogate search" \
    org.opencontainers.image.description="Makes a Pareto set of detection models from a labelled data set" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.revision="${REVISION}"
COPY --from=build /opt/paretogate /opt/paretogate
RUN useradd --uid 10001 --no-create-home --home-dir /tmp paretogate \
    && install -d -o paretogate /work
ENV PATH=/opt/paretogate/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 MPLCONFIGDIR=/tmp/matplotlib
USER 10001
WORKDIR /work
# A batch job serves nothing: it is well as long as it can be started.
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "search"]
