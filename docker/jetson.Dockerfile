# syntax=docker/dockerfile:1
# The target half on a Jetson with JetPack 6: docs/howto/docker.md says how to build and run it, and that nobody has so far.
ARG BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0
FROM ${BASE}
# CMake and a compiler build the plugins; the environment sees the system's module `tensorrt`.
RUN apt-get update && apt-get install --yes --no-install-recommends cmake g++ python3-venv && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY ztdeploy ztdeploy
COPY profiles profiles
COPY plugins plugins
RUN python3 -m venv --system-site-packages /opt/ztdeploy && /opt/ztdeploy/bin/pip install --no-cache-dir .
RUN useradd --create-home --groups video ztdeploy
USER ztdeploy
WORKDIR /home/ztdeploy
ENV PATH=/opt/ztdeploy/bin:$PATH
ENTRYPOINT ["ztdeploy"]
CMD ["--help"]
