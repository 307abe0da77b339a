# A published set as an image that puts itself into a repository, beside what is served there:
#   docker build -f deploy/set.Dockerfile --build-arg SET=model_repo -t paretogate-set .
# The models are verified against the manifest, their folders are added, and the manifest goes last; gateways that
# watch the repository take the set over between two requests. See kubernetes/publish.
ARG ROUTER_IMAGE=paretogate-router
FROM ${ROUTER_IMAGE}
# A published repository below the build's context.
ARG SET=model_repo
LABEL org.opencontainers.image.title="Paretogate set"
COPY ${SET}/frontier.json /set/frontier.json
COPY ${SET}/models/ /set/models/
USER 10001
HEALTHCHECK NONE
ENTRYPOINT ["python", "-m", "search", "copy", "--from", "/set", "--to", "/repository"]
