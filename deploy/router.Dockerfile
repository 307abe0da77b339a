# The gateway: no torch, no compiler, no root. Build from the repository root:
#   docker build -f deploy/router.Dockerfile -t paretogate-router .
# Models are not in the image; mount a published repository at /repository. Neither are keys and certificates:
# without PARETOGATE_KEYS, PARETOGATE_TLS_CERT and PARETOGATE_TLS_KEY, files that are mounted, the gateway refuses
# to start, unless PARETOGATE_INSECURE=true says that something in front of it sees to that.
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
# With a certificate it is https://127.0.0.1:8080/healthz.
ENV PATH=/opt/paretogate/bin:$PATH PYTHONUNBUFFERED=1 HEALTH_URL=http://127.0.0.1:8080/healthz
USER 10001
EXPOSE 8080 8081 8082
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, ssl, urllib.request as u; \
        u.urlopen(os.environ['HEALTH_URL'], timeout=2, context=ssl._create_unverified_context())"]
ENTRYPOINT ["python", "-m", "router", "--repo", "/repository", "--host", "0.0.0.0"]
