# syntax=docker/dockerfile:1
# The target half on a CPU, amd64 or arm64: docs/howto/docker.md says how to build and run it, and that nobody has so far.
FROM --platform=$BUILDPLATFORM python:3.12-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY ztdeploy ztdeploy
COPY profiles profiles
COPY plugins plugins
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:3.12-slim
COPY constraints.txt /wheels/
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir --constraint /wheels/constraints.txt /wheels/ztdeploy-*.whl && useradd --create-home ztdeploy
USER ztdeploy
WORKDIR /home/ztdeploy
ENTRYPOINT ["ztdeploy"]
CMD ["--help"]
