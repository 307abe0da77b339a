# The search with CPU torch. Build from the repository root:
#   docker build -f deploy/search.Dockerfile -t paretogate-search .
#   docker run --rm -v "$PWD/data:/data:ro" -v paretogate:/work paretogate-search --help
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
# Where torch comes from. The index of CPU builds keeps gigabytes of CUDA libraries out of the image; give the
# index of the CUDA version of your driver to train on a GPU.
ARG TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
RUN python -m venv /opt/paretogate \
    && /opt/paretogate/bin/pip install --no-cache-dir --index-url "${TORCH_INDEX_URL}" torch==2.13.0
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY model_repo/ model_repo/
COPY search/ search/
COPY router/ router/
COPY loadtest/ loadtest/
RUN /opt/paretogate/bin/pip install --no-cache-dir '.[search]'

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/paretogate /opt/paretogate
RUN useradd --system --uid 10001 --create-home paretogate \
    && install -d -o paretogate /work
ENV PATH=/opt/paretogate/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
WORKDIR /work
# A batch job serves nothing: it is well as long as it can be started.
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "search"]
