# The gateway: no torch, no compiler, no root. Build from the repository root:
#   docker build -f deploy/router.Dockerfile -t paretogate-router .
# Models are not in the image; mount a published repository at /repository.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY model_repo/ model_repo/
COPY search/ search/
COPY router/ router/
COPY loadtest/ loadtest/
RUN python -m venv /opt/paretogate \
    && /opt/paretogate/bin/pip install --no-cache-dir '.[router]'

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/paretogate /opt/paretogate
# The gateway's own user; /triton is where a repository for Triton is rendered into a volume.
RUN useradd --system --uid 10001 --no-create-home paretogate \
    && install -d -o paretogate /repository /triton
ENV PATH=/opt/paretogate/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8080 8081
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8080/healthz', timeout=2)"]
ENTRYPOINT ["python", "-m", "router", "--repo", "/repository", "--host", "0.0.0.0"]
